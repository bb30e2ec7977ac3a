"""Whole optimizer steps against torch's fused, foreach and compiled ones, clip and clearing included, float32.

`python benchmarks/bench_optim.py [--device D] [--quick] [--json FILE] [--threads N] [--seconds N]`. Workloads and method are
those of bench_kernels.py. Ours is `gradalign.optim.AdamW` as users call it, on each backend; at the end its speed relative to
torch's is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from step_names import CLIP_STEP, COMPOSITE, UPDATE, WITH_UPDATE
from timing import Calls, Row, arguments, backends, compiled, report, rows
from workloads import Lists, workloads

from gradalign.optim import AdamW

SETTINGS = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


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

    def torch_step(self, clip: bool, clear: bool | None, **kind: bool) -> Callable[[], None]:
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
    """perturb_ and restore_ in torch's lists ops."""

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
        (COMPOSITE, "torch foreach"): (lambda: (move(), clipped()), 14),
    }
    for kind in ("fused", "foreach"):
        calls |= {
            (UPDATE, f"torch {kind}"): (params.torch_step(clip=False, clear=None, **{kind: True}), 7),
            (CLIP_STEP, f"torch {kind}"): (params.torch_step(clip=True, clear=False, **{kind: True}), 9),
            (CLIP_STEP, f"torch {kind}, None"): (params.torch_step(clip=True, clear=True, **{kind: True}), 8),
        }
    if compile_too:
        whole = compiled(params.torch_step(clip=True, clear=False, foreach=True))
        composite = compiled(lambda: (move(), clipped()))
        calls |= {(CLIP_STEP, "torch compiled"): (whole, 9)} if whole else {}
        calls |= {(COMPOSITE, "torch compiled"): (composite, 14)} if composite else {}
    return calls


def our_steps(params: Parameters) -> Calls:
    """The same with the kernels."""
    lists, calls = params.lists, Calls()
    for kernels in backends(lists.p[0].device, torch.float32):
        if kernels.NAME == "reference":
            continue

        def move(kernels=kernels) -> None:
            kernels.perturb_(lists.p, lists.backup, lists.x, lists.tiny)
            kernels.restore_(lists.p, lists.backup)

        name = kernels.NAME
        update, clipped = params.our_step(name, clip=False, clear=None), params.our_step(name, clip=True, clear=None)
        calls |= {
            (UPDATE, name): (update, 7),
            (CLIP_STEP, name): (params.our_step(name, clip=True, clear="zero"), 9),
            (CLIP_STEP, f"{name}, None"): (params.our_step(name, clip=True, clear="none"), 8),
            (WITH_UPDATE, name): (lambda move=move, update=update: (move(), update()), 13),
            (COMPOSITE, name): (lambda move=move, clipped=clipped: (move(), clipped()), 14),
        }
    return calls


def measured(device: torch.device, quick: bool, seconds: float) -> Iterator[list[Row]]:
    """Every step, one workload after the other."""
    lists_of = workloads(device.type, quick)
    for name, shapes in lists_of.items():
        params = Parameters(Lists(shapes, torch.float32, device))
        compile_too = len(shapes) < 100  # a thousand small tensors take minutes to compile
        calls = torch_steps(params, compile_too) | our_steps(params)
        yield rows(name, params.lists, calls, seconds / len(lists_of))


def speedups(results: list[Row]) -> str:
    """How many times faster native is than torch."""
    times = {(r.workload, r.op, r.variant): r.microseconds for r in results}
    lines = ["", "native, times faster than"]
    for (workload, op, variant), time in times.items():
        ours = "native, None" if variant.endswith("None") else "native"
        if variant.startswith("torch ") and (workload, op, ours) in times:
            lines.append(f"{workload:<18} {op:<30} {variant:<20} {time / times[workload, op, ours]:.2f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    chosen = arguments(__doc__, argv)
    results = report(measured(torch.device(chosen.device), chosen.quick, chosen.seconds), chosen.device, chosen.json)
    print(speedups(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
