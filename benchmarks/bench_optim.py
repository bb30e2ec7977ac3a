"""The fused optimizer steps against torch's fused, foreach and compiled ones, clip and clearing included.

`python benchmarks/bench_optim.py [--quick] [--json FILE] [--threads N]`. Workloads and method are those of
bench_kernels.py. A step is: clip by global norm, AdamW, clear the gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from bench_kernels import Row, arguments, machine, measure, report, workloads

from gradalign import dispatch

LR, BETAS, EPS, DECAY = 1e-5, (0.9, 0.999), 1e-8, 0.01
SCALARS = (torch.tensor(LR), torch.tensor(DECAY))


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.rand(s)) for s in shapes]
    for p in params:
        p.grad = torch.rand_like(p)
    return params


def torch_step(shapes: list[tuple[int, ...]], **kind: bool) -> Callable[[], None]:
    """clip_grad_norm_, AdamW.step, zero_grad(set_to_none=False)."""
    params = parameters(shapes)
    optimizer = torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **kind)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def kernel_step(shapes: list[tuple[int, ...]]) -> Callable[[], None]:
    """The same through the kernels: norm_dot for the norm, then one adamw_step_."""
    backend = dispatch.load("native")
    params = [p.detach() for p in parameters(shapes)]
    grads, m, v = ([torch.rand_like(p) for p in params] for _ in range(3))
    steps = [torch.zeros(()) for _ in params]

    def step() -> None:
        norm = backend.norm_dot(grads)[0].sqrt()
        coefficient = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        betas = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
        backend.adamw_step_(params, grads, m, v, [], [], steps, coefficient, *SCALARS, **betas, zero_grads=True)

    return step


def update_alone(shapes: list[tuple[int, ...]], name: str) -> Callable[[], None]:
    """adamw, sgd or lamb without clip and clearing."""
    backend = dispatch.load("native")
    params, grads, m, v = ([torch.rand(s) for s in shapes] for _ in range(4))
    steps, one = [torch.zeros(()) for _ in params], torch.tensor(1.0)
    adam = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}
    calls: dict[str, Callable[[], None]] = {
        "adamw_step_": lambda: backend.adamw_step_(params, grads, m, v, [], [], steps, one, *SCALARS, **adam),
        "sgd_step_": lambda: backend.sgd_step_(params, grads, m, [], steps, one, *SCALARS, momentum=0.9),
        "lamb_step_": lambda: backend.lamb_step_(params, grads, m, v, [], steps, one, *SCALARS, **adam),
    }
    return calls[name]


def rows(workload: str, shapes: list[tuple[int, ...]], rounds: int, compiled: bool) -> list[Row]:
    clip = "clip + AdamW + clear"
    p, x = ([torch.rand(s) for s in shapes] for _ in range(2))
    # Tensors' worth of bytes: the norm reads g; the update reads p, g, m, v and writes p, m, v; clearing writes g.
    timed: dict[tuple[str, str], tuple[Callable[[], object], int]] = {
        ("y += a x", "torch"): (lambda: torch._foreach_add_(p, x, alpha=1e-7), 3),
        (clip, "torch fused"): (torch_step(shapes, fused=True), 9),
        (clip, "torch foreach"): (torch_step(shapes, foreach=True), 9),
    }
    if compiled:
        timed[clip, "torch compiled"] = (torch.compile(torch_step(shapes, foreach=True)), 9)
    if dispatch.load("native").why_unavailable() is None:
        timed[clip, "native"] = (kernel_step(shapes), 9)
        for name, tensors in (("adamw_step_", 7), ("sgd_step_", 5), ("lamb_step_", 10)):
            timed[name, "native"] = (update_alone(shapes, name), tensors)
    medians = measure(timed, rounds)
    size = 4 * sum(torch.Size(s).numel() for s in shapes)
    rate = {key: timed[key][1] * size / seconds / 1e9 for key, seconds in medians.items()}
    add = rate["y += a x", "torch"]
    return [
        Row(workload, op, kind, "float32", 1e6 * medians[op, kind], gbs, gbs / add) for (op, kind), gbs in rate.items()
    ]


def speedups(results: list[Row]) -> str:
    times = {(r.workload, r.variant): r.microseconds for r in results if r.op.startswith("clip")}
    lines = ["", "native, times faster than"]
    for (workload, variant), time in times.items():
        if variant != "native" and (workload, "native") in times:
            lines.append(f"{workload:<18} {variant:<15} {time / times[workload, 'native']:.2f}")
    return "\n".join(lines)


def main() -> int:
    chosen = arguments(__doc__)
    print(machine())
    results: list[Row] = []
    for name, shapes in workloads(chosen.quick).items():
        results += rows(
            name, shapes, 3 if chosen.quick else 50 if name == "1,000 tensors" else 9, compiled=not chosen.quick
        )
    report(results, chosen.json)
    print(speedups(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
