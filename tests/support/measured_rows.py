"""Rows as benchmarks/bench_kernels.py and bench_optim.py write them, with round numbers."""

from __future__ import annotations


def measured(workload, op, variant, microseconds, of_add, dtype="float32"):
    return {
        "workload": workload,
        "op": op,
        "variant": variant,
        "dtype": dtype,
        "microseconds": microseconds,
        "gigabytes_per_second": 50.0,
        "of_add": of_add,
    }
