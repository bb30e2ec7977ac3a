import math

import pytest
from support.toy_demo import StepCounter
from support.toy_sites import SETTINGS, toy_features, toy_texts

from gradalign.cli.demo.sites.methods import LONGER, METHODS
from gradalign.cli.demo.sites.train import Run, train_seed


@pytest.fixture(scope="module")
def trained():
    texts, progress = toy_texts(), StepCounter()
    return train_seed(SETTINGS, texts.of_seed(toy_features(texts.distinct), 0), progress), progress.done


def test_every_arm_takes_every_step_and_is_evaluated_after_the_last(trained):
    arms, steps = trained
    assert steps == SETTINGS.steps
    assert set(arms) == {method.name for method in METHODS} | {LONGER}
    for method in METHODS:
        assert arms[method.name]["steps"] == len(arms[method.name]["seconds"]) == SETTINGS.steps
        assert arms[method.name]["accuracies"][-1] == (SETTINGS.steps, arms[method.name]["test"])


def test_plain_training_goes_on_for_as_long_as_the_dearest_arm_took(trained):
    arms, _ = trained
    dearest = max(arms[method.name]["cost_factor"] for method in METHODS)
    assert arms[LONGER]["steps"] == round(SETTINGS.steps * dearest)
    assert arms[LONGER]["accuracies"][: len(arms["plain"]["accuracies"])] == arms["plain"]["accuracies"]


def test_agreement_between_sites_leans_less_on_the_planted_sentences(trained):
    arms, _ = trained
    for name in ("variance", "cosine"):
        assert arms[name]["by_pointing_right"][0] > arms["plain"]["by_pointing_right"][0] + 0.2
        assert arms[name]["test"] > arms["plain"]["test"] + 0.05
    assert arms["cosine, mixed"]["test"] < arms["cosine"]["test"]
    assert arms["plain"]["by_pointing_right"][2] > arms["plain"]["by_pointing_right"][0]


def test_the_sites_come_in_another_order_in_each_step_the_same_for_all_arms():
    texts = toy_texts()
    data = texts.of_seed(toy_features(texts.distinct), 0)
    seen = {}
    for method in METHODS:
        run, seen[method.name] = Run(method, data, SETTINGS), []
        run._backward = lambda _, micro_batches, into=seen[method.name]: into.append([id(x) for x in micro_batches])
        for _ in range(40):
            run.step()
    of_sites = [seen[m.name] for m in METHODS if not m.mixed]
    assert all(orders == of_sites[0] for orders in of_sites)
    firsts = [order[0] for order in of_sites[0]]
    assert 10 <= firsts.count(id(data.train[0])) <= 30
    assert all(sorted(order) == sorted(map(id, data.train)) for order in of_sites[0])


def test_a_training_that_diverges_has_no_accuracy():
    texts = toy_texts()
    data = texts.of_seed(toy_features(texts.distinct), 0)
    broken = data._replace(train=[(x * float("inf"), y) for x, y in data.train])
    arm = train_seed(SETTINGS, broken, StepCounter())["plain"]
    assert all(math.isnan(value) for value in (arm["test"], arm["own"], *arm["by_pointing_right"]))
