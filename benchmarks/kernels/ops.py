"""Bytes per second of every kernel on every backend, against in-place `y += a x` and `copy_` measured in the same run.

`python -m benchmarks.kernels.ops [--device D] [--quick] [--json FILE] [--threads N] [--seconds N]`. Calls are interleaved,
figures are medians. Bytes are those of the table in docs/kernels.md: what the op must read and write. A store to memory that
was not read costs the CPU a hidden read; an op that only reads does not get the writes that `y += a x` does at the same time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import torch

from benchmarks.kernels.command import Setting, arguments, run
from benchmarks.kernels.measurement import Calls, Counted, backends, compiled, in_order, is_compiled, rows
from benchmarks.kernels.workloads import Lists, workloads
from benchmarks.record import Row
from gradalign.backends import signatures

BETAS, EPS = (0.9, 0.999), 1e-8
NORM_PERTURB = "norm_dot + perturb_"


def ops_of(backend: ModuleType, lists: Lists) -> Calls:
    """Every op of a backend."""
    name = backend.NAME
    adam = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
    p, backup, x, g, m, v = lists.p, lists.backup, lists.x, lists.g, lists.m, lists.v
    scalars = (lists.steps, lists.one, lists.lr, lists.decay)

    def norm() -> object:
        return backend.norm_dot(x)

    def perturb() -> object:
        return backend.perturb_(p, backup, x, lists.tiny)

    return {
        ("norm", name): Counted(norm, 1),
        ("norm_dot", name): Counted(lambda: backend.norm_dot(x, g), 2),
        ("perturb_", name): Counted(perturb, 4),
        (NORM_PERTURB, name): Counted(in_order(norm, perturb), 5),
        ("restore_", name): Counted(lambda: backend.restore_(p, backup), 2),
        ("swap_", name): Counted(lambda: backend.swap_(p, backup), 4),
        ("accumulate_", name): Counted(lambda: backend.accumulate_(backup, x, lists.tiny), 3),
        ("combine_", name): Counted(lambda: backend.combine_(backup, x, g, lists.tiny, lists.tiny), 3),
        ("adamw_step_", name): Counted(
            lambda: signatures.call(backend, "adamw_step_", p, g, m, v, [], [], *scalars, **adam), 7
        ),
        ("sgd_step_", name): Counted(
            lambda: signatures.call(backend, "sgd_step_", p, g, m, [], *scalars, momentum=0.9), 5
        ),
        ("lamb_step_", name): Counted(
            lambda: signatures.call(backend, "lamb_step_", p, g, m, v, [], *scalars, **adam), 10
        ),
    }


def foreach_ops(lists: Lists) -> Calls:
    """The same by torch's ops on lists; perturb_ by a copy and an addition, without the sums over the displacement."""

    def perturb() -> None:
        torch._foreach_copy_(lists.backup, lists.p)
        torch._foreach_add_(lists.p, lists.x, alpha=1e-7)

    return {
        ("norm", "foreach"): Counted(lambda: torch._foreach_norm(lists.x), 1),
        ("perturb_", "foreach"): Counted(perturb, 4),
        (NORM_PERTURB, "foreach"): Counted(in_order(lambda: torch._foreach_norm(lists.x), perturb), 5),
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
    return {} if call is None else {("perturb_", "compiled"): Counted(call, 4)}


def calls_of(lists: Lists) -> Calls:
    calls = foreach_ops(lists)
    if is_compiled(lists):
        calls |= compiled_ops(lists)
    for backend in backends(lists.p[0].device, lists.p[0].dtype):
        calls |= ops_of(backend, lists)
    return calls


def measured(setting: Setting) -> Iterator[list[Row]]:
    """Every op in float32 and bfloat16, one workload after the other."""
    shapes_of = workloads(setting.device.type, setting.quick)
    pairs = [(name, dtype) for dtype in (torch.float32, torch.bfloat16) for name in shapes_of]
    for name, dtype in pairs:
        lists = Lists(shapes_of[name], dtype, setting.device)
        yield rows(name, lists, calls_of(lists), setting.seconds / len(pairs), setting.provenance)


def main(argv: list[str] | None = None) -> int:
    run("ops", measured, arguments(__doc__, argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())
