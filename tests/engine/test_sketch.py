from __future__ import annotations

import pytest
import torch
from support.networks import Counting, make
from torch import nn

import gradalign
from gradalign.engine.sketch import CHUNK, WIDTH, Sketch, cosines
from gradalign.engine.space import ParamSpace
from gradalign.telemetry import plot_tasks


def space_of(*sizes):
    return ParamSpace([nn.Parameter(torch.zeros(size)) for size in sizes], None, "reference")


def test_the_error_of_an_inner_product_keeps_its_bound():
    space = space_of(3 * CHUNK + 17, 1000)
    sketch = Sketch(space)
    generator = torch.Generator().manual_seed(1)
    errors = []
    for _ in range(200):
        x, y = ([torch.randn(p.shape, generator=generator) for p in space.params] for _ in range(2))
        sx, sy = sketch.of(x), sketch.of(y)
        exact = [
            sum(float(a.double() @ b.double()) for a, b in zip(u, v, strict=True)) for u, v in ((x, x), (x, y), (y, y))
        ]
        bound = ((exact[0] * exact[2] + exact[1] ** 2) / WIDTH) ** 0.5
        errors.append((float(sx @ sy) - exact[1]) / bound)
        assert float(sx @ sx) == pytest.approx(exact[0], rel=5 * (2 / WIDTH) ** 0.5)
    root_mean_square = (sum(e**2 for e in errors) / len(errors)) ** 0.5
    assert 0.8 < root_mean_square < 1.2
    assert abs(sum(errors) / len(errors)) < 0.25


def test_energy_at_the_same_place_of_every_chunk_does_not_collide():
    space = space_of(64 * CHUNK)
    x, y = torch.zeros(64 * CHUNK), torch.zeros(64 * CHUNK)
    x[::CHUNK] = 1.0
    y[::CHUNK] = torch.tensor([1.0, -1.0]).repeat(32)
    sketch = Sketch(space)
    assert abs(float(sketch.of([x]) @ sketch.of([y]))) / 64 < 0.1
    assert float(sketch.of([x]).square().sum()) / 64 == pytest.approx(1, abs=0.1)


def test_it_is_linear_and_leaves_the_random_stream_alone():
    space = space_of(2 * CHUNK, 7)
    x, y = ([torch.randn(p.shape) for p in space.params] for _ in range(2))
    before = torch.get_rng_state()
    both = Sketch(space).of([a + 2 * b for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(both, Sketch(space).of(x) + 2 * Sketch(space).of(y), rtol=1e-4, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_without_a_gradient_do_not_shift_the_others():
    space = space_of(5, CHUNK)
    x = torch.randn(CHUNK)
    assert torch.equal(Sketch(space).of([None, x]), Sketch(space).of([torch.zeros(5), x]))


def test_small_parameters_share_chunks():
    """One call of 65,536 elements for all of them: a call each made `tasks=` ten times slower on 600 small tensors."""
    space = space_of(*[50] * 600, 40 * CHUNK, 3)
    assert [len(run) for run in Sketch(space)._runs()] == [600, 1, 1]


def test_cosines():
    sketches = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    found = cosines(sketches)
    half = 2**-0.5
    torch.testing.assert_close(found, torch.tensor([[1, 0, half], [0, 1, half], [half, half, 1]], dtype=torch.float64))


ESTIMATORS = ["split", "prefix", "leave_one_out", "symmetric", "momentum", "exact"]


@pytest.mark.parametrize(("estimator", "probes"), [("split", "rotate"), *((name, "last") for name in ESTIMATORS)])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_tasks_give_a_matrix_of_cosines(estimator, probes, weight, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(200, 60)
    labels = ["b", "a", "b", "c", "a", "c", "b", "a"]
    targets = {name: torch.randn(60) for name in "abc"}
    batches = [(torch.randn(6, 200), targets[name]) for name in labels]

    def loss_fn(batch):
        x, target = batch
        return (model(x) - target).square().mean()

    gradients = {name: torch.zeros(60 * 201) for name in "abc"}
    for name, batch in zip(labels, batches, strict=True):
        pieces = torch.autograd.grad(loss_fn(batch), list(model.parameters()))
        gradients[name] += torch.cat([g.reshape(-1) for g in pieces])
    expected = cosines(torch.stack([gradients[name] for name in "abc"]).double())

    aligner = gradalign.GradAlign(model, weight, estimator=estimator, probes=probes)
    aligner.backward(loss_fn, batches, tasks=labels)
    stats = aligner.stats
    assert stats.tasks == ("a", "b", "c")
    assert float((stats.task_cosines - expected).abs().max()) < 4 * (2 / WIDTH) ** 0.5
    assert stats.as_dict()["task_cosines"] == stats.task_cosines.tolist()
    plot_tasks(stats, tmp_path / "tasks.png")
    assert (tmp_path / "tasks.png").stat().st_size > 1000


def test_labels_one_at_a_time_and_their_checks():
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1)
    with aligner.accumulate(4, tasks=["x", "y", "x", "y"]) as step:
        for batch in batches:
            step.backward(lambda batch=batch: loss_fn(batch))
    assert aligner.stats.tasks == ("x", "y")
    model.zero_grad()
    with pytest.raises(ValueError, match="tasks: expected one label for each of the 4 micro-batches"):
        aligner.backward(loss_fn, batches, tasks=["x"])
    aligner.backward(loss_fn, batches)
    with pytest.raises(ValueError, match="plot_tasks: expected statistics with tasks"):
        plot_tasks(aligner.stats, "nowhere.png")
