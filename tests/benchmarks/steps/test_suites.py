from __future__ import annotations

import pytest

from benchmarks.__main__ import SUITES as NAMES
from benchmarks.steps.contenders import CONTENDERS
from benchmarks.steps.runner import GRACE
from benchmarks.steps.suites import SUITES
from benchmarks.steps.workloads import MODELS, Workload


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_names_what_there_is_and_has_plain_for_every_workload(name):
    suite = SUITES[name]()
    keys = [m.key for m in suite.measurements]
    assert len(keys) == len(set(keys))
    assert {m.method for m in suite.measurements} <= set(CONTENDERS)
    assert {m.workload.model for m in suite.measurements} <= set(MODELS)
    assert {workload for workload, _ in keys} == {workload for workload, method in keys if method == "plain"}
    assert suite.headline in {m.workload for m in suite.measurements}


@pytest.mark.parametrize(("name", "minutes"), [("quick", 2), ("host", 2), ("minilm", 6), ("cpu", 40)])
def test_a_suite_ends_within_its_promise(name, minutes):
    suite = SUITES[name]()
    assert 60 * suite.minutes + GRACE <= 60 * minutes + 6  # the last row may begin just before the bound


def test_the_methods_of_the_readme_are_measured_on_minilm():
    suite = SUITES["minilm"]()
    workload = Workload("minilm", 8, 16, 64)
    methods = ("plain", "split m=k/4", "prefix", "leave_one_out", "double backward", "pytorch_optimizer SAM")
    methods += ("naive double backward",)
    assert {m.key for m in suite.measurements} == {(workload.name, method) for method in methods}


def test_one_factor_is_varied_at_a_time():
    base = Workload("bert-tiny", 8, 16, 64)
    for workload in {m.workload for m in SUITES["cpu"]().measurements if m.workload.model == "bert-tiny"}:
        assert sum(getattr(workload, f) != getattr(base, f) for f in ("k", "batch", "size", "dtype")) <= 1
