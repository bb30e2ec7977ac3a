from __future__ import annotations

import math

import pytest
from support.rows import HEADLINE, failed, row, split

from benchmarks.errors import CommandError
from benchmarks.steps import compare as comparison


def verdicts(old, new):
    return {c.quantity: c.verdict for c in comparison.compare([old], [new])}


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.25, "same"), (1.28, "same"), (1.30, "worse"), (1.23, "same"), (1.20, "better")]
)
def test_three_percent_are_noise(ratio, verdict):
    steady = {"ratio_quartiles": [1.25, 1.25]}
    assert verdicts(split(**steady), split(ratio=ratio, **steady))["time / plain"] == verdict


def test_the_band_widens_with_the_spread_of_the_rounds():
    noisy = {"ratio_quartiles": [1.0, 1.5]}
    assert verdicts(split(**noisy), split(ratio=1.45, **noisy))["time / plain"] == "same"
    assert verdicts(split(**noisy), split(ratio=2.0, **noisy))["time / plain"] == "worse"


def test_the_standard_error_is_that_of_a_median():
    measured = split(ratio=1.0, ratio_quartiles=[1.0 - 0.06745, 1.0 + 0.06745], rounds=25)
    assert comparison.relative_error(measured) == pytest.approx(1.253 * 0.1 / 5, rel=1e-3)


def test_a_slower_machine_is_no_regression():
    assert "worse" not in verdicts(split(), split(seconds=9.0, plain_seconds=7.2)).values()


@pytest.mark.parametrize(("peak", "verdict"), [(455e6, "same"), (470e6, "worse"), (410e6, "better")])
def test_memory_has_a_band_of_16_megabytes(peak, verdict):
    assert verdicts(split(), split(peak_bytes=peak))["peak memory"] == verdict


def test_passes_are_exact_and_a_new_failure_is_worse():
    assert verdicts(split(), split(passes=11))["passes"] == "worse"
    assert "passes" not in verdicts(split(), split())
    assert verdicts(split(), failed("split m=k/4")) == {"status": "worse"}
    assert verdicts(failed("split m=k/4"), split()) == {"status": "better"}
    assert verdicts(failed("split m=k/4"), failed("split m=k/4")) == {}


def test_rows_that_only_one_has_are_named_and_not_compared():
    old, new = [row(), split()], [row()]
    assert {c.method for c in comparison.compare(old, new)} == {"plain"}
    assert comparison.one_sided(old, new) == [f"1 row only in A: {HEADLINE.name}: split m=k/4."]
    assert comparison.one_sided(new, new) == []


def test_of_many_rows_a_few_are_named():
    new = [row(method) for method in ("plain", *"abcdef")]
    names = "; ".join(f"{HEADLINE.name}: {method}" for method in "abcd")
    assert comparison.one_sided([row()], new) == [f"6 rows only in B: {names} and 2 more."]


@pytest.mark.parametrize(("old", "new"), [([row()], [split()]), ([row()], []), ([], [])])
def test_results_that_share_no_row_are_refused(old, new):
    message = f"--compare: expected rows that both have; got none of {len(old)} in A and {len(new)} in B"
    with pytest.raises(CommandError, match=message):
        comparison.one_sided(old, new)


def test_the_text_lists_what_moved():
    changes = comparison.compare([split(), row()], [split(ratio=2.0), row()])
    text = comparison.as_text(changes)
    assert "| time / plain |  1.250 | 2.000 |" in text
    assert text.endswith("3 quantities within noise, 1 beyond it.")
    assert comparison.as_text(changes[2:]) == "2 quantities within noise, 0 beyond it."


@pytest.mark.parametrize(("old", "new"), [(1.25, math.nan), (math.nan, 1.25), (math.nan, math.nan)])
def test_what_is_not_a_number_is_not_within_noise(old, new):
    assert verdicts(split(ratio=old), split(ratio=new))["time / plain"] == "worse"
    assert verdicts(split(peak_bytes=4e8 * old), split(peak_bytes=4e8 * new))["peak memory"] == "worse"


def test_rows_that_were_measured_under_other_conditions_are_told():
    machine = split()["machine"]
    gpu = {"device": "cuda", "machine": {**machine, "gpus": [{"name": "a GPU"}]}}
    threads = {"machine": {**machine, "threads": 8}}
    old = [row(), split()]
    assert comparison.one_sided(old, [row(seed=1), split(seed=1)]) == [
        "2 of 2 rows were measured with another seed: 0 in A, 1 in B."
    ]
    assert comparison.one_sided(old, [row(), split(**threads)]) == [
        "1 of 2 rows was measured with another number of threads: 2 in A, 8 in B."
    ]
    assert comparison.one_sided(old, [row(**gpu), split(**gpu, seed=3), row("prefix")]) == [
        f"1 row only in B: {HEADLINE.name}: prefix.",
        "2 of 2 rows were measured with another device: cpu (a CPU) in A, cuda (a GPU) in B.",
        "1 of 2 rows was measured with another seed: 0 in A, 3 in B.",
    ]
