"""Bytes per second of every kernel, against in-place `y += a x` and `copy_` measured in the same run.

`python benchmarks/bench_kernels.py [--quick] [--json FILE] [--threads N]`. Variants are interleaved, figures are medians. Bytes
are those of DESIGN section 3: what the op must read and write; a store to memory that was not read costs a hidden read.
Workloads: one tensor of 64M elements, the parameters of BERT-base, 1,000 small tensors.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from gradalign import dispatch
from gradalign.backends import native

SCALE = torch.tensor(1e-7, dtype=torch.float64)


@dataclass
class Row:
    """One variant on one workload."""

    workload: str
    op: str
    variant: str
    dtype: str
    microseconds: float
    gigabytes_per_second: float
    of_add: float  # as a fraction of the bandwidth of y += a x


def bert_base() -> list[tuple[int, ...]]:
    """The shapes of the parameters of BERT-base, 110M elements."""
    layer = [*[(768, 768), (768,)] * 4, (768,), (768,), (3072, 768), (3072,), (768, 3072), (768,), (768,), (768,)]
    return [(30522, 768), (512, 768), (2, 768), (768,), (768,), *layer * 12, (768, 768), (768,)]


def workloads(quick: bool) -> dict[str, list[tuple[int, ...]]]:
    """Name -> shapes."""
    return {
        "one tensor of 64M": [(1 << 22 if quick else 1 << 26,)],
        "BERT-base": [shape for shape in bert_base() if not quick or shape[0] < 30000][: 40 if quick else None],
        "1,000 tensors": [(2048,) if i % 2 else (64, 64) for i in range(1000)],
    }


def variants(
    shapes: list[tuple[int, ...]], dtype: torch.dtype
) -> dict[tuple[str, str], tuple[Callable[[], object], int]]:
    """(op, variant) -> what to time, and how many tensors' worth of bytes it must move."""
    p, backup, x, y, out = ([torch.rand(s).to(dtype) for s in shapes] for _ in range(5))
    timed: dict[tuple[str, str], tuple[Callable[[], object], int]] = {
        ("y += a x", "torch"): (lambda: torch._foreach_add_(p, x, alpha=1e-7), 3),
        ("copy", "torch"): (lambda: torch._foreach_copy_(backup, p), 2),
        ("norm_dot", "foreach"): (lambda: (torch._foreach_norm(x), torch._foreach_norm(y)), 2),
        ("perturb_", "foreach"): (lambda: foreach_perturb(p, backup, x), 4),
    }
    if len(shapes) == 1 and shapes[0][0] > 1 << 24:
        timed["perturb_", "compiled"] = (compiled_perturb(p, backup, x), 4)
    for name in ("native", "reference"):
        backend = dispatch.load(name)
        if backend.why_unavailable() is None:
            timed.update(ops_of(backend, p, backup, x, y, out))
    return timed


def compiled_perturb(p, backup, x) -> Callable[[], object]:
    """torch.compile of what reference computes in perturb_."""

    @torch.compile
    def perturb(p, backup, x, scale, one):
        sums = []
        for param, kept, direction in zip(p, backup, x, strict=True):
            d = direction * scale
            moved = param + d
            delta = moved - param
            sums.append(torch.stack(((delta * d).sum(), (d * d).sum(), (delta * delta).sum())))
            kept.copy_(param * one)  # torch 2.13 compiles a plain copy so that it reads the new value of param
            param.copy_(moved)
        return torch.stack(sums).sum(0)

    scale, one = torch.tensor(1e-7, dtype=p[0].dtype), torch.tensor(1.0, dtype=p[0].dtype)
    return lambda: perturb(p, backup, x, scale, one)


def ops_of(backend, p, backup, x, y, out) -> dict[tuple[str, str], tuple[Callable[[], object], int]]:
    name = backend.NAME
    return {
        ("norm", name): (lambda: backend.norm_dot(x), 1),
        ("norm_dot", name): (lambda: backend.norm_dot(x, y), 2),
        ("perturb_", name): (lambda: backend.perturb_(p, backup, x, SCALE), 4),
        ("norm_dot + perturb_", name): (lambda: (backend.norm_dot(x), backend.perturb_(p, backup, x, SCALE)), 5),
        ("restore_", name): (lambda: backend.restore_(p, backup), 2),
        ("swap_", name): (lambda: backend.swap_(p, backup), 4),
        ("accumulate_", name): (lambda: backend.accumulate_(p, x, SCALE), 3),
        ("combine_", name): (lambda: backend.combine_(out, x, y, SCALE, SCALE), 3),
    }


def foreach_perturb(p, backup, x) -> None:
    """What perturb_ replaces, after the norm: keep theta, then add."""
    torch._foreach_copy_(backup, p)
    torch._foreach_add_(p, x, alpha=1e-7)


def measure(timed: dict, rounds: int) -> dict[tuple[str, str], float]:
    """Median seconds of each variant; one of each a round, so that all meet the same disturbances."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for turn in range(rounds + 1):
        for key, (call, _) in timed.items():
            start = time.perf_counter()
            call()
            if turn:  # the first round warms up
                seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in seconds.items()}


def rows(workload: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, rounds: int) -> list[Row]:
    timed = variants(shapes, dtype)
    medians = measure(timed, rounds)
    size = sum(torch.Size(s).numel() for s in shapes) * dtype.itemsize
    rate = {key: timed[key][1] * size / seconds / 1e9 for key, seconds in medians.items()}
    add = rate["y += a x", "torch"]
    return [
        Row(workload, op, variant, str(dtype).removeprefix("torch."), 1e6 * medians[op, variant], gbs, gbs / add)
        for (op, variant), gbs in rate.items()
    ]


def machine() -> dict[str, object]:
    """Where the figures are from."""
    return {
        "processor": platform.processor() or platform.machine(),
        "isa": native.cpu_isa() if native.why_unavailable() is None else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table(results: list[Row]) -> str:
    lines = [f"{'workload':<18} {'dtype':<9} {'op':<20} {'variant':<10} {'us':>10} {'GB/s':>7} {'of add':>7}"]
    for r in results:
        lines.append(
            f"{r.workload:<18} {r.dtype:<9} {r.op:<20} {r.variant:<10} "
            f"{r.microseconds:>10.0f} {r.gigabytes_per_second:>7.1f} {r.of_add:>7.2f}"
        )
    return "\n".join(lines)


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def report(results: list[Row], path: str | None) -> None:
    print(table(results))
    if path:
        with open(path, "w") as file:
            json.dump({"machine": machine(), "rows": [asdict(row) for row in results]}, file, indent=1)


def main() -> int:
    chosen = arguments(__doc__)
    print(machine())
    results: list[Row] = []
    dtypes = [torch.float32] if chosen.quick else [torch.float32, torch.bfloat16]
    for dtype in dtypes:
        for name, shapes in workloads(chosen.quick).items():
            results += rows(name, shapes, dtype, 3 if chosen.quick else 100 if name == "1,000 tensors" else 11)
    report(results, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
