"""Whole optimizer steps against torch's fused, foreach and compiled ones, clip and clearing included, float32.

`python -m benchmarks.kernels.optimizers [--device D] [--quick] [--json FILE] [--threads N] [--seconds N]`. Workloads and
timing are those of `benchmarks.kernels.ops`. Ours is `gradalign.optim.AdamW` as users call it, on each backend; at the end its
speed relative to torch's is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from benchmarks.kernels.command import Setting, arguments, run
from benchmarks.kernels.measurement import Calls, Counted, backends, compiled, in_order, is_compiled, rows
from benchmarks.kernels.step_names import CLIP_STEP, COMPOSITE, UPDATE, WITH_UPDATE
from benchmarks.kernels.workloads import Lists, workloads
from benchmarks.record import Row
from benchmarks.tables import as_markdown
from gradalign.optim import AdamW

SETTINGS: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


class Parameters:
    """The parameters of a list with gradients, and torch's and our optimizers on them."""

    def __init__(self, lists: Lists) -> None:
        self.lists = lists
        self.params = [torch.nn.Parameter(p) for p in lists.p]
        self.fill()

    def fill(self) -> None:
        """Gradients are tensors again after a step that set them to None."""
        for p, g in zip(self.params, self.lists.g, strict=True):
            p.grad = g

    def torch_step(self, clip: bool, clear: bool | None, **kind: Any) -> Callable[[], None]:
        """clip_grad_norm_, AdamW.step, zero_grad(set_to_none=clear); clear=None leaves the gradients."""
        optimizer = torch.optim.AdamW(self.params, **SETTINGS, **kind)

        def step() -> None:
            if clip:
                torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
            optimizer.step()
            if clear is not None:
                optimizer.zero_grad(set_to_none=clear)
            if clear:
                self.fill()

        return step

    def our_step(self, backend: str, clip: bool, clear: str | None) -> Callable[[], None]:
        """One fused step. Without clipping there is no check for inf and NaN either, as in torch."""
        limit = 1.0 if clip else None
        optimizer = AdamW(
            self.params, **SETTINGS, max_grad_norm=limit, skip_nonfinite=clip, clear=clear, backend=backend
        )

        def step() -> None:
            optimizer.step()
            if clear == "none":
                self.fill()

        return step


def displaced(lists: Lists) -> Callable[[], None]:
    """perturb_ and restore_ by torch's ops on lists."""

    @torch.no_grad()
    def move() -> None:
        torch._foreach_copy_(lists.backup, lists.p)
        torch._foreach_add_(lists.p, lists.x, alpha=1e-7)
        torch._foreach_copy_(lists.p, lists.backup)

    return move


def torch_steps(params: Parameters, compile_too: bool) -> Calls:
    """What ours replaces. Bytes: a norm reads g; the update reads p, g, m, v and writes p, m, v; zeroing writes g."""
    move = displaced(params.lists)
    clipped = params.torch_step(clip=True, clear=None, foreach=True)
    calls: Calls = {
        (COMPOSITE, "torch foreach"): Counted(in_order(move, clipped), 14),
    }
    for kind in ("fused", "foreach"):
        calls |= {
            (UPDATE, f"torch {kind}"): Counted(params.torch_step(clip=False, clear=None, **{kind: True}), 7),
            (CLIP_STEP, f"torch {kind}"): Counted(params.torch_step(clip=True, clear=False, **{kind: True}), 9),
            (CLIP_STEP, f"torch {kind}, None"): Counted(params.torch_step(clip=True, clear=True, **{kind: True}), 8),
        }
    if compile_too:
        whole = compiled(params.torch_step(clip=True, clear=False, foreach=True))
        composite = compiled(in_order(move, clipped))
        calls |= {(CLIP_STEP, "torch compiled"): Counted(whole, 9)} if whole else {}
        calls |= {(COMPOSITE, "torch compiled"): Counted(composite, 14)} if composite else {}
    return calls


def our_steps(params: Parameters) -> Calls:
    """The same with the kernels."""
    lists, calls = params.lists, Calls()
    for backend in backends(lists.p[0].device, torch.float32):
        if backend.NAME != "reference":
            calls |= steps_on(backend, params)
    return calls


def steps_on(backend: ModuleType, params: Parameters) -> Calls:
    """Ours on one backend."""
    lists, name = params.lists, backend.NAME
    update, clipped = params.our_step(name, clip=False, clear=None), params.our_step(name, clip=True, clear=None)

    def move() -> None:
        backend.perturb_(lists.p, lists.backup, lists.x, lists.tiny)
        backend.restore_(lists.p, lists.backup)

    return {
        (UPDATE, name): Counted(update, 7),
        (CLIP_STEP, name): Counted(params.our_step(name, clip=True, clear="zero"), 9),
        (CLIP_STEP, f"{name}, None"): Counted(params.our_step(name, clip=True, clear="none"), 8),
        (WITH_UPDATE, name): Counted(in_order(move, update), 13),
        (COMPOSITE, name): Counted(in_order(move, clipped), 14),
    }


def measured(setting: Setting) -> Iterator[list[Row]]:
    """Every step, one workload after the other."""
    shapes_of = workloads(setting.device.type, setting.quick)
    for name, shapes in shapes_of.items():
        params = Parameters(Lists(shapes, torch.float32, setting.device))
        calls = torch_steps(params, is_compiled(params.lists)) | our_steps(params)
        yield rows(name, params.lists, calls, setting.seconds / len(shapes_of), setting.provenance)


def speedups(found: list[Row]) -> str:
    """How many times faster native is than torch."""
    times = {(r["workload"]["name"], r["op"], r["method"]): r["microseconds"] for r in found}
    body = []
    for (workload, op, method), time in times.items():
        ours = "native, None" if method.endswith("None") else "native"
        if method.startswith("torch ") and (workload, op, ours) in times:
            body.append([workload, op, method, f"{time / times[workload, op, ours]:.2f}"])
    return as_markdown(("workload", "step", "native against", "times faster"), body, num_text=3)


def main(argv: list[str] | None = None) -> int:
    print(speedups(run("optimizers", measured, arguments(__doc__, argv))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
