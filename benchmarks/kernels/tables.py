"""The tables of docs/kernels.md and docs/optimizers.md, from the results of bench_kernels.py and bench_optim.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.steps import table

Found = dict[str, Any]
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
YARDSTICK = "y += a x"


def of_kernels(folder: Path) -> str:
    """Every op's bandwidth as a fraction of the yardstick's, a column for each workload and dtype."""
    return "\n\n".join(_kernels(found) for found in _results(folder, "kernels-*.json"))


def of_steps(folder: Path) -> str:
    """How many times faster our steps are than torch's, a column for each workload."""
    return "\n\n".join(_steps(found) for found in _results(folder, "optim-*.json"))


def _results(folder: Path, pattern: str) -> list[Found]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def where(found: Found) -> str:
    """The machine, torch and the day, of a result or a row."""
    machine, versions = found["machine"], found["versions"]
    device = ", ".join(gpu["name"] for gpu in machine["gpus"]) or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{device}, torch {versions['torch']}, {found['date'][:10]}"


def _kernels(found: Found) -> str:
    rows = found["rows"]
    columns = list(dict.fromkeys((r["workload"], r["dtype"]) for r in rows))
    cells = {(r["op"], r["variant"], r["workload"], r["dtype"]): r for r in rows}
    ours = list(dict.fromkeys((r["op"], r["variant"]) for r in rows if r["variant"] in ("native", "triton")))
    several = len({variant for _, variant in ours}) > 1
    body = [
        [
            f"{op}, {variant}" if several else op,
            *(f"{cells[(op, variant, *column)]['of_add']:.2f}" for column in columns),
        ]
        for op, variant in ours
    ]
    speeds = [f"{cells[(YARDSTICK, 'torch', *column)]['gigabytes_per_second']:.0f}" for column in columns]
    body.append([f"{YARDSTICK}, GB/s", *speeds])
    heads = [f"{workload}, {DTYPES[dtype]}" for workload, dtype in columns]
    return f"{where(found)}:\n\n{table.as_markdown(('op', *heads), body)}"


def _steps(found: Found) -> str:
    rows = found["rows"]
    workloads = list(dict.fromkeys(r["workload"] for r in rows))
    times = {(r["op"], r["variant"], r["workload"]): r["microseconds"] for r in rows}
    body = []
    for op, variant in dict.fromkeys((r["op"], r["variant"]) for r in rows):
        ours = "native, None" if variant.endswith(", None") else "native"
        if not variant.startswith("torch ") or (op, ours, workloads[0]) not in times:
            continue
        cells = []
        for workload in workloads:
            theirs = times.get((op, variant, workload))
            cells.append("" if theirs is None else f"{theirs / times[op, ours, workload]:.2f}")
        name = variant.removeprefix("torch ").replace(", None", ", gradients set to None")
        body.append([op, name, *cells])
    return f"{where(found)}:\n\n{table.as_markdown(('step', 'against torch', *workloads), body)}"
