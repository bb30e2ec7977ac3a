"""Rows and results as the benchmarks write them, with round numbers."""

from __future__ import annotations

from benchmarks.steps.workloads import Workload

HEADLINE = Workload("minilm", 8, 16, 64)
PLACE = {
    "date": "2026-01-02T03:04:05+00:00",
    "device": "cpu",
    "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "instruction_set": "AVX2", "gpus": []},
    "versions": {"gradalign": "0.1.0", "torch": "2.13.0", "numpy": None},
    "commit": "abc",
    "seed": 0,
}


def row(method="plain", workload=HEADLINE, **changes):
    """A step that was measured."""
    found = {
        "workload": workload.as_dict(),
        "method": method,
        **PLACE,
        "status": "ok",
        "reason": None,
        "parameters": 10_000_000,
        "parameter_bytes": 40_000_000,
        "data": "texts",
        "peak_bytes": 400_000_000,
        "loss_evaluations": 8,
        "passes": 8,
        "kernels": {},
        "host_seconds": None,
        "launches": None,
        "synchronisations": None,
        "rounds": 16,
        "seconds": 1.0,
        "plain_seconds": 1.0,
        "ratio": 1.0,
        "ratio_quartiles": [0.99, 1.01],
        "ratio_range": [0.9, 1.1],
        "samples_per_second": 128.0,
    }
    if "ratio" in changes:
        found["ratio_quartiles"] = [0.99 * changes["ratio"], 1.01 * changes["ratio"]]
    return found | changes


def split(**changes):
    """The default estimator, 1.25 times as slow as plain and a copy of the parameters larger."""
    kernels = {"perturb_": {"calls": 1, "bytes": 160_000_000, "seconds": 0.008}}
    defaults = {"ratio": 1.25, "ratio_quartiles": [1.24, 1.27], "passes": 10, "peak_bytes": 440_000_000}
    return row("split m=k/4", **{**defaults, "kernels": kernels, "bandwidth": 25e9, **changes})


def failed(method, reason="out of memory: no", workload=HEADLINE):
    """A step that could not be measured."""
    kept = ("workload", "method", *PLACE)
    whole = row(method, workload)
    return {name: whole[name] for name in kept} | {"status": "failed", "reason": reason}


def result(*rows, suite="minilm", left=()):
    """A suite of steps."""
    return {
        "suite": suite,
        "headline": HEADLINE.name,
        "complete": not left,
        "left": list(left),
        "rows": list(rows),
    }


def kernel_row(workload, op, method, microseconds, of_add, dtype="float32"):
    """An op or an optimizer step beside `y += a x`."""
    return {
        "workload": {"name": workload, "dtype": dtype},
        "op": op,
        "method": method,
        **PLACE,
        "status": "ok",
        "reason": None,
        "rounds": 5,
        "microseconds": microseconds,
        "gigabytes_per_second": 50.0,
        "of_add": of_add,
    }


def kernel_result(suite, *rows):
    """What `benchmarks.kernels.ops` ("ops") or `.optimizers` ("optimizers") writes."""
    return {"suite": suite, "headline": None, "complete": True, "left": [], "rows": list(rows)}
