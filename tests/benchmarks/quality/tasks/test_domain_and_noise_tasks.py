"""What every task promises, on generated data in place of the archives."""

import copy
from functools import cache

import pytest
import torch

from benchmarks.quality import archives
from benchmarks.quality.sampling import Samples
from benchmarks.quality.task import METRICS
from benchmarks.quality.tasks import TASKS, clean, label_noise, rotated_mnist, sinusoids, sprites, vader

MODULES = (vader, rotated_mnist, sprites, label_noise, clean, sinusoids)
ALIKE = ("sprites-5", "sprites-10", "sprites-50")  # what holds for two and for twenty domains holds for these
NAMES = [task.name for module in MODULES for task in module.TASKS if task.name not in ALIKE]
WITH_SOURCES = [name for name in NAMES if TASKS[name].has_sources]
LEARNING = ["vader", "rotated-mnist", "noise-mnist", "noise-reviews", "clean-mnist", "sinusoids"]


def images(count=5000):
    """A bright square for each class in a place of its own, and noise."""
    chance = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 100, (count, 28, 28), generator=chance)
    for i in range(10):
        pixels[i::10, 4 + 4 * (i // 2) : 8 + 4 * (i // 2), 6 + 10 * (i % 2) : 12 + 10 * (i % 2)] += 150
    return archives.Images(pixels.to(torch.uint8), labels)


def features(count, seed):
    """Two classes along one direction, and noise."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    rows = torch.randn(count, 8, generator=chance)
    rows[:, 0] += 3.0 * labels
    return Samples(rows, labels)


DOMAINS = [vader.Domain(name, features(2400, i), [str(n // 7) for n in range(2400)]) for i, name in enumerate("abcd")]
IMAGES = images()


@pytest.fixture(autouse=True)
def generated(monkeypatch):
    monkeypatch.setattr(archives, "mnist_5k", lambda: IMAGES)
    monkeypatch.setattr(archives, "fashion_mnist", lambda: IMAGES)
    monkeypatch.setattr(vader, "domains", lambda: DOMAINS)
    monkeypatch.setattr(label_noise, "reviews", lambda: (features(5000, 9), [str(n // 11) for n in range(5000)]))


@cache
def made(name, seed=3, mixed=False):
    """A problem that no test trains."""
    return TASKS[name].problem(seed, mixed)


def equal(batches, others):
    return len(batches) == len(others) and all(
        torch.equal(x, y)
        for batch, other in zip(batches, others, strict=True)
        for x, y in zip(batch, other, strict=True)
    )


def in_order(batches):
    """All samples of a step as rows, sorted: what is in it, whatever the grouping."""
    rows = torch.cat([torch.cat([b.inputs.flatten(1), b.targets.view(len(b.targets), -1)], 1) for b in batches])
    return rows[sorted(range(len(rows)), key=lambda i: rows[i].tolist())]


def train(task, problem, lr, steps):
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[task.optimizer]
    optimizer = make(problem.model.parameters(), lr=lr)
    for step in range(steps):
        batches = problem.micro_batches(step)
        sum(problem.loss_fn(problem.model, batch) for batch in batches).div(len(batches)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return problem.evaluate(problem.model)


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_is_a_function_of_its_seed(name):
    torch.randn(5)  # what the global generator gives says nothing
    state = torch.get_rng_state()
    first, second, other = made(name), TASKS[name].problem(3, False), made(name, 1)
    assert equal(first.micro_batches(2), second.micro_batches(2))
    assert equal(first.micro_batches(2), first.micro_batches(2))
    assert not equal(first.micro_batches(2), other.micro_batches(2))
    assert equal([list(first.model.parameters())], [list(second.model.parameters())])
    assert not equal([list(first.model.parameters())], [list(other.model.parameters())])
    assert first.evaluate(first.model) == second.evaluate(second.model)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_leaves_mode_and_weights(name):
    problem = made(name)
    problem.model.train()
    part = next(problem.model.children())
    part.eval()
    weights = copy.deepcopy(problem.model.state_dict())
    state = torch.get_rng_state()
    assert set(problem.evaluate(problem.model)) == set(METRICS)
    assert torch.equal(state, torch.get_rng_state())
    assert problem.model.training
    assert not part.training
    assert all(torch.equal(value, weights[key]) for key, value in problem.model.state_dict().items())
    assert all(p.grad is None for p in problem.model.parameters())


@pytest.mark.parametrize("name", WITH_SOURCES)
def test_mixing_regroups_the_same_samples(name):
    apart, mixed = made(name, 1), made(name, 1, True)
    for step in (0, 7):
        batches, dealt = apart.micro_batches(step), mixed.micro_batches(step)
        assert [len(b.targets) for b in batches] == [len(b.targets) for b in dealt]
        assert len(batches) == len(apart.sources) == len(set(apart.sources))
        assert torch.equal(in_order(batches), in_order(dealt))
        assert not any(torch.equal(in_order([b]), in_order([d])) for b in batches for d in dealt)


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(WITH_SOURCES)))
def test_without_sources_there_is_nothing_to_mix(name):
    apart, mixed = made(name, 1), made(name, 1, True)
    assert apart.sources is None
    assert equal(apart.micro_batches(0), mixed.micro_batches(0))


@pytest.mark.parametrize("name", LEARNING)
def test_plain_training_learns(name):
    task = TASKS[name]
    problem = task.problem(0, False)
    untrained = problem.evaluate(problem.model)
    trained = train(task, problem, (task.lrs[0] * task.lrs[1]) ** 0.5, 25)
    if name == "sinusoids":
        assert trained["test"] > 0.9 * untrained["test"]
    else:
        assert trained["test"] > untrained["test"] + 0.15


def test_wrong_labels_are_in_training_and_its_validation_alone():
    right, wrong = TASKS["clean-mnist"].problem(3, False), made("noise-mnist")
    pairs = list(zip(right.micro_batches(0), wrong.micro_batches(0), strict=True))
    assert len(pairs) == label_noise.MICRO_BATCHES
    assert all(torch.equal(a.inputs, b.inputs) for a, b in pairs)
    assert sum(int((a.targets != b.targets).sum()) for a, b in pairs) == 400
    # On the same samples and, trained on right labels, with the same weights: what differs is how they are labelled.
    train(TASKS["clean-mnist"], right, 0.01, 5)
    model = right.model
    found, other = right.evaluate(model), wrong.evaluate(model)
    assert found["test"] == other["test"]
    assert found["validation"] == other["validation"]
    assert other["source_validation"] < 0.7 * found["source_validation"]


def test_the_domain_held_out_goes_round():
    for seed in range(5):
        assert made("vader", seed).sources == tuple("abcd".replace("abcd"[seed % 4], ""))


def test_no_document_is_trained_on_and_tested():
    numbered = [
        vader.Domain(
            d.name, d.samples._replace(inputs=torch.arange(2400.0).view(-1, 1).expand(-1, 2) // 7), d.documents
        )
        for d in DOMAINS
    ]
    problem = vader.problem(numbered, 0, False, (800, 300, 500, 1500))
    trained = {row for batch in problem.micro_batches(0)[:1] for row in batch.inputs[:, 0].tolist()}
    assert len(trained) < 300  # of the 343 documents: those of its validation are others
    parts = label_noise.without_overlap([str(n // 7) for n in range(700)], (100, 200, 300), torch.Generator())
    documents = [set((rows // 7).tolist()) for rows in parts]
    assert [len(rows) for rows in parts] == [100, 200, 300]
    assert sum(len(own) for own in documents) == len(set().union(*documents))


def test_digits_are_turned_counterclockwise():
    image = torch.zeros(1, 28, 28)
    image[0, 14, 20:26] = 1.0  # right of the centre
    turned = rotated_mnist.turned(image, 90)
    assert turned[0, 2:8, 13:15].sum() == pytest.approx(6.0, abs=0.1)  # above it
    torch.testing.assert_close(rotated_mnist.turned(image, 0), image)


def test_two_colour_codes_are_learnt_instead_of_the_shapes():
    task = TASKS["sprites-2"]
    trained = train(task, task.problem(1000, False), 0.01, 60)
    assert trained["source_validation"] > 0.95
    assert trained["test"] < 0.65


def test_colours_tell_the_class_in_training_and_nothing_in_the_test():
    code = sprites.some_colours(2, torch.Generator().manual_seed(0))
    coded = sprites.in_code(code, 8, torch.Generator().manual_seed(1))
    for image, label in zip(*coded, strict=True):
        peak = image.flatten(1).amax(1)
        torch.testing.assert_close(peak / peak.sum(), code[label] / code[label].sum())
    free = sprites.any_colour(8, torch.Generator().manual_seed(1))
    hues = {tuple(round(v, 3) for v in (c / c.sum()).tolist()) for c in free.inputs.flatten(2).amax(2)}
    assert len(hues) == 8


def test_squares_and_ellipses_have_the_same_area():
    chance = torch.Generator().manual_seed(0)
    square = sprites.shapes(torch.zeros(400, dtype=torch.long), chance).sum((1, 2)).mean()
    ellipse = sprites.shapes(torch.ones(400, dtype=torch.long), chance).sum((1, 2)).mean()
    assert ellipse == pytest.approx(square.item(), rel=0.05)


def test_a_domain_of_sprites_is_never_drawn_twice_in_a_step():
    problem = made("sprites-20")
    for step in range(3):
        hues = [
            {tuple(round(v, 2) for v in (c / c.sum()).tolist()) for c in b.inputs.flatten(2).amax(2)}
            for b in problem.micro_batches(step)
        ]
        assert len(hues) == sprites.DRAWN
        assert all(len(own) == 2 for own in hues)  # a colour a class
        assert len(set().union(*hues)) == 2 * sprites.DRAWN


def test_adaptation_is_five_steps_of_sgd():
    chance = torch.Generator().manual_seed(3)
    one = sinusoids.sines(1, 60, chance)
    sets = sinusoids.FewShot(
        Samples(one.inputs[:, :10], one.targets[:, :10]), Samples(one.inputs[:, 10:], one.targets[:, 10:])
    )
    model = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    found = sinusoids.adapted_error(model, sets)
    adapted = copy.deepcopy(model)
    optimizer = torch.optim.SGD(adapted.parameters(), lr=sinusoids.ADAPTATION_LR)
    for _ in range(5):
        optimizer.zero_grad()
        sinusoids.squared_error(adapted, Samples(sets.support.inputs[0], sets.support.targets[0])).backward()
        optimizer.step()
    expected = sinusoids.squared_error(adapted, Samples(sets.query.inputs[0], sets.query.targets[0])).item()
    assert found == pytest.approx(expected, rel=1e-5)
