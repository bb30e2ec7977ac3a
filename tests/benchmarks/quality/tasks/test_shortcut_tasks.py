"""The tasks with shortcuts: features are right as often as they should be, sources keep apart, and a seed is a seed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.quality import replicas
from benchmarks.quality.task import TUNING_SEEDS
from benchmarks.quality.tasks import reviews, shortcut
from benchmarks.quality.training import Job
from gradalign.cli.workload.data import Snippet
from gradalign.cli.workload.features import Features
from gradalign.cli.workload.sites import Sites, split_sites


@pytest.mark.parametrize("source", [None, 0, 1])
def test_a_shortcut_is_right_in_its_source_alone(source):
    features, labels = shortcut.sample(20_000, 2, source, torch.Generator().manual_seed(0))
    right = (features == (2 * labels - 1)[:, None]).double().mean(0).tolist()
    expected = [0.93, *(0.99 if s == source else 0.5 for s in range(2))]
    assert right == pytest.approx(expected, abs=0.015)
    assert labels.mean() == pytest.approx(0.5, abs=0.015)


def test_the_stable_feature_is_worth_its_rate_and_a_shortcut_nothing():
    problem = shortcut.problem(2, None, False, 0, False)
    for place, test, sources in ((0, 0.93, 0.93), (1, 0.5, (0.99 + 0.5) / 2)):
        with torch.no_grad():
            problem.model.weight.zero_()
            problem.model.weight[0, place] = 1.0
        found = problem.evaluate(problem.model)
        assert found["test"] == pytest.approx(test, abs=0.025)
        assert found["validation"] == pytest.approx(test, abs=0.025)
        assert found["source_validation"] == pytest.approx(sources, abs=0.025)


def made(seed, mixed):
    return shortcut.problem(2, 32, True, seed, mixed)


def test_a_seed_gives_one_problem():
    problem, again, other, mixed = made(3, False), made(3, False), made(4, False), made(3, True)
    state = torch.get_rng_state()
    assert problem.evaluate(problem.model) == again.evaluate(again.model) != other.evaluate(other.model)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = problem.micro_batches(0), problem.micro_batches(1)
    assert torch.equal(first[0][0], again.micro_batches(0)[0][0])
    assert not torch.equal(first[0][0], second[0][0])
    assert len(first) == len(problem.sources) == 2

    def count(batches):
        return torch.cat([x for x, _ in batches]).sum(0)

    assert torch.equal(count(first), count(mixed.micro_batches(0)))


@pytest.fixture
def texts(monkeypatch):
    """600 made-up snippets, whose features are the place of their text and its length."""
    made = [Snippet(f"text {i}", i % 2, f"film {i // 10}") for i in range(600)]
    monkeypatch.setattr(reviews, "snippets", lambda sites: made)
    monkeypatch.setattr(reviews, "PER_SITE", 150)
    monkeypatch.setattr(reviews, "HELD_OUT", 80)
    monkeypatch.setattr(reviews, "TUNING", 170)

    def numbered(written):
        distinct = sorted(set(written))
        return Features(distinct, torch.tensor([[float(i), float(len(t))] for i, t in enumerate(distinct)]))

    monkeypatch.setattr(reviews, "features", numbered)
    for cached in (reviews.all_features, reviews.data):
        cached.cache_clear()
    yield made
    for cached in (reviews.all_features, reviews.data):
        cached.cache_clear()


def test_reviews_are_standardised_over_the_training_set_and_tested_without_plants_too(texts):
    found = reviews.data(Sites("cities", 2, 0.9), 0)
    train = torch.cat([x for x, _ in found.train])
    assert [len(y) for _, y in found.train] == [150, 150]
    torch.testing.assert_close(train.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0), torch.ones(2), atol=1e-5, rtol=0)
    assert len(found.test[1]) == 80
    assert torch.equal(found.test[1], found.clean_test[1])
    assert (found.clean_test[0][:, 1] < found.test[0][:, 1]).all()  # shorter by the planted sentences


def test_what_settings_are_chosen_on_is_in_no_test(texts, monkeypatch):
    parts = []

    def kept(*args):
        parts.append(split_sites(*args))
        return parts[-1]

    monkeypatch.setattr(reviews, "split_sites", kept)
    for seed in (*TUNING_SEEDS, *range(20)):
        reviews.data(Sites("cities", 2, 0.9), seed)
    validating = [s for split in parts[:3] for part in (split.validation, *split.source_validation) for s in part]
    assert not {s.group for s in validating} & {s.group for split in parts[3:] for s in split.test}


def test_a_problem_of_reviews_has_a_micro_batch_a_site(texts):
    problem = reviews.problem(Sites("cities", 2, 0.99), False, 0, False)
    assert len(problem.micro_batches(0)) == len(problem.sources) == 2
    assert set(problem.evaluate(problem.model)) == {"validation", "source_validation", "test", "clean_test"}
    assert problem.micro_batches(0) is problem.micro_batches(7)
    wide = reviews.problem(Sites("cities", 2, 0.99), True, 0, True)
    assert sum(p.numel() for p in wide.model.parameters()) == 2 * 64 + 64 + 64 + 1


def test_names_of_tasks_say_what_they_are():
    assert [task.name for task in shortcut.TASKS] == [
        "shortcut-2",
        "shortcut-3",
        "shortcut-4",
        "shortcut-2-mini",
        "shortcut-2-mlp",
    ]
    assert "reviews-2x99-papers" in {task.name for task in reviews.TASKS}
    assert "reviews-2x99-mlp" in {task.name for task in reviews.TASKS}


def test_agreement_of_the_first_layer_keeps_a_hidden_layer_from_the_shortcuts():
    (task,) = (task for task in shortcut.TASKS if task.name == "shortcut-2-mlp")
    test = {}
    for arm, lr, value in (("plain", 0.05, 0.0), ("cosine, first layer", 0.3, 0.475)):
        rows = replicas.run_all(task, [Job(arm, False, lr, value, seed, task.steps) for seed in range(4)], False)
        test[arm] = sum(row["final"]["test"] for row in rows) / len(rows)
    assert test["cosine, first layer"] > test["plain"] + 0.05
