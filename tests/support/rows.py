"""Rows as `gradalign bench` writes them, with round numbers."""

from __future__ import annotations

from benchmarks.steps.works import Work

HEADLINE = Work("minilm", 8, 16, 64)


def row(method="plain", work=HEADLINE, **changes):
    found = {
        "work": work.as_dict(),
        "method": method,
        "date": "2026-01-02T03:04:05+00:00",
        "device": "cpu",
        "machine": {"cpu": "a CPU", "cores": 2, "threads": 2, "instruction_set": "AVX2", "gpus": []},
        "versions": {"gradalign": "0.1.0", "torch": "2.13.0", "numpy": None},
        "commit": "abc",
        "seed": 0,
        "status": "ok",
        "reason": None,
        "parameters": 10_000_000,
        "parameter_bytes": 40_000_000,
        "data": "texts",
        "peak_bytes": 400_000_000,
        "losses": 8,
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
    kernels = {"perturb_": {"calls": 1, "bytes": 160_000_000, "seconds": 0.008}}
    defaults = {"ratio": 1.25, "ratio_quartiles": [1.24, 1.27], "passes": 10, "peak_bytes": 440_000_000}
    return row("split m=k/4", **{**defaults, "kernels": kernels, "bandwidth": 25e9, **changes})


def failed(method, reason="out of memory: no", work=HEADLINE):
    kept = ("work", "method", "date", "device", "machine", "versions", "commit", "seed")
    whole = row(method, work)
    return {name: whole[name] for name in kept} | {"status": "failed", "reason": reason}


def result(*rows, suite="minilm", left=()):
    return {
        "suite": suite,
        "headline": HEADLINE.name,
        "complete": not left,
        "left": list(left),
        "rows": list(rows),
    }
