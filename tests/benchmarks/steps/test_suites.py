from __future__ import annotations

import pytest

from benchmarks.steps import SUITES as NAMES
from benchmarks.steps.methods import ENTRIES
from benchmarks.steps.runner import GRACE
from benchmarks.steps.suites import SUITES
from benchmarks.steps.works import MODELS, Work


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_names_what_there_is_and_has_plain_for_every_work(name):
    suite = SUITES[name]()
    keys = [m.key for m in suite.measurements]
    assert len(keys) == len(set(keys))
    assert {m.method for m in suite.measurements} <= set(ENTRIES)
    assert {m.work.model for m in suite.measurements} <= set(MODELS)
    assert {work for work, _ in keys} == {work for work, method in keys if method == "plain"}
    assert suite.headline in {m.work for m in suite.measurements}


@pytest.mark.parametrize(("name", "minutes"), [("quick", 2), ("minilm", 6), ("cpu", 40)])
def test_a_suite_ends_within_its_promise(name, minutes):
    suite = SUITES[name]()
    assert 60 * suite.minutes + GRACE <= 60 * minutes + 6  # the last row may begin just before the bound


def test_the_issues_targets_are_measured_on_its_work():
    suite = SUITES["minilm"]()
    work = Work("minilm", 8, 16, 64)
    methods = ("plain", "split m=k/4", "prefix", "leave_one_out", "double backward", "pytorch_optimizer SAM")
    methods += ("naive double backward",)
    assert {m.key for m in suite.measurements} == {(work.name, method) for method in methods}


def test_one_factor_is_varied_at_a_time():
    base = Work("bert-tiny", 8, 16, 64)
    for work in {m.work for m in SUITES["cpu"]().measurements if m.work.model == "bert-tiny"}:
        assert sum(getattr(work, f) != getattr(base, f) for f in ("k", "batch", "size", "dtype")) <= 1
