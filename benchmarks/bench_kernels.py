"""Bytes per second of every kernel on every backend, against in-place `y += a x` and `copy_` measured in the same run.

`python benchmarks/bench_kernels.py [--device D] [--quick] [--json FILE] [--threads N] [--seconds N]`. Variants are interleaved,
figures are medians. Bytes are those of DESIGN section 3: what the op must read and write; a store to memory that was not read
costs the CPU a hidden read, and what only reads misses the writes that come along with y += a x.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import torch
from timing import Calls, Row, arguments, backends, compiled, report, rows
from workloads import Lists, workloads

from gradalign.backends import signatures

BETAS, EPS = (0.9, 0.999), 1e-8
NORM_PERTURB = "norm_dot + perturb_"


def ops_of(kernels: ModuleType, lists: Lists) -> Calls:
    """Every op of a backend, with DESIGN's reads and writes."""
    name = kernels.NAME
    adam = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
    p, backup, x, g, m, v = lists.p, lists.backup, lists.x, lists.g, lists.m, lists.v
    scalars = (lists.steps, lists.one, lists.lr, lists.decay)
    return {
        ("norm", name): (lambda: kernels.norm_dot(x), 1),
        ("norm_dot", name): (lambda: kernels.norm_dot(x, g), 2),
        ("perturb_", name): (lambda: kernels.perturb_(p, backup, x, lists.tiny), 4),
        (NORM_PERTURB, name): (lambda: (kernels.norm_dot(x), kernels.perturb_(p, backup, x, lists.tiny)), 5),
        ("restore_", name): (lambda: kernels.restore_(p, backup), 2),
        ("swap_", name): (lambda: kernels.swap_(p, backup), 4),
        ("accumulate_", name): (lambda: kernels.accumulate_(backup, x, lists.tiny), 3),
        ("combine_", name): (lambda: kernels.combine_(backup, x, g, lists.tiny, lists.tiny), 3),
        ("adamw_step_", name): (
            lambda: signatures.call(kernels, "adamw_step_", p, g, m, v, [], [], *scalars, **adam),
            7,
        ),
        ("sgd_step_", name): (lambda: signatures.call(kernels, "sgd_step_", p, g, m, [], *scalars, momentum=0.9), 5),
        ("lamb_step_", name): (lambda: signatures.call(kernels, "lamb_step_", p, g, m, v, [], *scalars, **adam), 10),
    }


def foreach_ops(lists: Lists) -> Calls:
    """The same by torch's lists ops; perturb_ by a copy and an addition, without the displacement's sums."""

    def perturb() -> None:
        torch._foreach_copy_(lists.backup, lists.p)
        torch._foreach_add_(lists.p, lists.x, alpha=1e-7)

    return {
        ("norm", "foreach"): (lambda: torch._foreach_norm(lists.x), 1),
        ("perturb_", "foreach"): (perturb, 4),
        (NORM_PERTURB, "foreach"): (lambda: (torch._foreach_norm(lists.x), perturb()), 5),
    }


def compiled_ops(lists: Lists) -> Calls:
    """torch.compile of what reference computes in perturb_."""
    scale, one = lists.tiny.to(lists.p[0].dtype), lists.one.to(lists.p[0].dtype)

    def perturb() -> torch.Tensor:
        sums = []
        for param, kept, direction in zip(lists.p, lists.backup, lists.x, strict=True):
            d = direction * scale
            moved = param + d
            delta = moved - param
            sums.append(torch.stack(((delta * d).sum(), (d * d).sum(), (delta * delta).sum())))
            kept.copy_(param * one)  # torch 2.13 compiles a plain copy so that it reads the new value of param
            param.copy_(moved)
        return torch.stack(sums).sum(0)

    call = compiled(perturb)
    return {} if call is None else {("perturb_", "compiled"): (call, 4)}


def calls_of(lists: Lists) -> Calls:
    calls = foreach_ops(lists)
    if len(lists.p) == 1:  # many small tensors take minutes to compile
        calls |= compiled_ops(lists)
    for kernels in backends(lists.p[0].device, lists.p[0].dtype):
        calls |= ops_of(kernels, lists)
    return calls


def measured(device: torch.device, quick: bool, seconds: float) -> Iterator[list[Row]]:
    """Every op in float32 and bfloat16, one workload after the other."""
    shapes_of = workloads(device.type, quick)
    works = [(name, dtype) for dtype in (torch.float32, torch.bfloat16) for name in shapes_of]
    for name, dtype in works:
        lists = Lists(shapes_of[name], dtype, device)
        yield rows(name, lists, calls_of(lists), seconds / len(works))


def main(argv: list[str] | None = None) -> int:
    chosen = arguments(__doc__, argv)
    report(measured(torch.device(chosen.device), chosen.quick, chosen.seconds), chosen.device, chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
