from __future__ import annotations

from support.rows import HEADLINE, failed, result, row, split

from benchmarks.steps import shortfalls


def of(*rows):
    return shortfalls.of_workload(rows, HEADLINE.name)


def test_plain_is_faster_and_smaller():
    time, memory = of(row(), split())
    assert time == (
        "plain takes 1.00 times plain's time, the default 1.25: it computes no term and runs 8 passes instead of 10."
    )
    assert memory == (
        "plain needs +0.0 copies of the parameters above plain, the default +1.0: it keeps no backup of the parameters."
    )


def test_fewer_passes_are_the_reason_where_there_are_fewer():
    (text,) = of(split(), row("Reptile", ratio=1.03, peak_bytes=440_000_000))
    assert "runs 8 passes instead of 10; it does not estimate the same term" in text


def test_a_faster_method_with_as_many_passes_is_not_explained_away():
    (text,) = of(split(), row("difference, foreach", ratio=1.2, passes=10, peak_bytes=440_000_000))
    assert "with no fewer passes, so that the difference is arithmetic on parameters, the host, or noise" in text


def test_slower_failed_and_equal_methods_are_left_out():
    assert of(split(), row("prefix", ratio=1.9, peak_bytes=480_000_000), failed("double backward")) == []
    assert of(split(), row("difference, torch", ratio=1.24, passes=10, peak_bytes=440_000_000)) == []


def test_without_the_default_there_is_nothing_to_say():
    assert of(row()) == []
    assert shortfalls.markdown(result(row())).endswith(f"None on {HEADLINE.name}.")
    assert "- plain takes 1.00 times" in shortfalls.markdown(result(row(), split()))
