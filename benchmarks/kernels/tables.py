"""The tables of docs/kernels.md and docs/optimizers.md, from the results of `ops` and `optimizers`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.kernels.measurement import YARDSTICK
from benchmarks.record import Row
from benchmarks.tables import as_markdown, place

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def of_ops(results: Sequence[Row]) -> str:
    """Every op's bandwidth as a fraction of the yardstick's, a column for each workload and dtype."""
    return "\n\n".join(f"{place(found['rows'][0])}:\n\n{_ops(found['rows'])}" for found in results)


def of_optimizers(results: Sequence[Row]) -> str:
    """How many times faster our steps are than torch's, a column for each workload."""
    return "\n\n".join(f"{place(found['rows'][0])}:\n\n{_optimizers(found['rows'])}" for found in results)


def _ops(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys((r["workload"]["name"], r["workload"]["dtype"]) for r in rows))
    cells = {(r["op"], r["method"], r["workload"]["name"], r["workload"]["dtype"]): r for r in rows}
    ours = list(dict.fromkeys((r["op"], r["method"]) for r in rows if r["method"] in ("native", "triton")))
    several = len({method for _, method in ours}) > 1
    body = [
        [
            f"{op}, {method}" if several else op,
            *(f"{cells[op, method, name, dtype]['of_add']:.2f}" for name, dtype in columns),
        ]
        for op, method in ours
    ]
    op, method = YARDSTICK
    speeds = [f"{cells[op, method, name, dtype]['gigabytes_per_second']:.0f}" for name, dtype in columns]
    body.append([f"{op}, GB/s", *speeds])
    return as_markdown(("op", *(f"{name}, {DTYPES[dtype]}" for name, dtype in columns)), body)


def _optimizers(rows: Sequence[Row]) -> str:
    workloads = list(dict.fromkeys(r["workload"]["name"] for r in rows))
    times = {(r["op"], r["method"], r["workload"]["name"]): r["microseconds"] for r in rows}
    body = []
    for step, method in dict.fromkeys((r["op"], r["method"]) for r in rows):
        ours = "native, None" if method.endswith(", None") else "native"
        if not method.startswith("torch ") or (step, ours, workloads[0]) not in times:
            continue
        name = method.removeprefix("torch ").replace(", None", ", gradients set to None")
        body.append([step, name, *(_times_faster(times, step, method, ours, workload) for workload in workloads)])
    return as_markdown(("step", "against torch", *workloads), body)


def _times_faster(times: dict[tuple[str, str, str], float], step: str, method: str, ours: str, workload: str) -> str:
    theirs = times.get((step, method, workload))
    return "" if theirs is None else f"{theirs / times[step, ours, workload]:.2f}"
