"""Bytes per second of every kernel on a GPU, and whole steps against torch's; figures are medians of interleaved rounds.

`python benchmarks/gpu_kernels.py [--json FILE] [--quick] [--device cuda] [--seconds N]`. The yardstick is in-place
`y += a x` (2 reads, 1 write) on the same list in the same run; `of_add` is a kernel's bandwidth as a fraction of it, by the
bytes of DESIGN section 3. Backends: native, and triton where it works. Without a GPU, `--device cpu --quick` only shows that
it runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from types import ModuleType

import torch

from gradalign import dispatch

Calls = dict[tuple[str, str], tuple[Callable[[], object], float]]  # (op, variant) -> call, bytes it must move
BETAS, EPS, LR, DECAY = (0.9, 0.999), 1e-8, 1e-5, 0.01
CLIP_STEP, COMPOSITE, WITH_UPDATE = "clip + AdamW + clear", "perturb, restore, clip + AdamW", "perturb, restore, AdamW"


@dataclass
class Row:
    """One variant on one workload."""

    workload: str
    op: str
    variant: str
    dtype: str
    microseconds: float
    gigabytes_per_second: float
    of_add: float


def bert_large() -> list[tuple[int, ...]]:
    """The shapes of the parameters of BERT-large, 335M elements in 391 tensors."""
    layer = [*[(1024, 1024), (1024,)] * 4, *[(1024,)] * 2, (4096, 1024), (4096,), (1024, 4096), *[(1024,)] * 3]
    return [(30522, 1024), (512, 1024), (2, 1024), (1024,), (1024,), *layer * 24, (1024, 1024), (1024,)]


def workloads(quick: bool) -> dict[str, list[tuple[int, ...]]]:
    """Name -> shapes."""
    if quick:
        return {"one tensor of 1M": [(1 << 20,)], "20 tensors": [(64, 64)] * 20}
    return {
        "one tensor of 64M": [(1 << 26,)],
        "one tensor of 256M": [(1 << 28,)],
        "BERT-large": bert_large(),
        "1,000 tensors": [(2048,) if i % 2 else (64, 64) for i in range(1000)],
    }


def backends(device: torch.device, dtype: torch.dtype) -> Iterator[ModuleType]:
    """Those with kernels of their own for this device."""
    for name in ("native", "triton"):
        module = dispatch.load(name)
        if module.why_unavailable() is None and module.supports(device.type, frozenset({dtype})):
            yield module


class Lists:
    """Parameters and everything of their size, filled with numbers that keep every op in range."""

    def __init__(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
        self.p, self.backup, self.x, self.g, self.m, self.v = (
            [torch.rand(s, device=device).to(dtype) for s in shapes] for _ in range(6)
        )
        self.steps = [torch.zeros((), device=device) for _ in shapes]
        self.tiny, self.one, self.lr, self.decay = (
            torch.full((), value, dtype=torch.float64, device=device) for value in (1e-7, 1.0, LR, DECAY)
        )
        self.bytes = sum(t.numel() for t in self.p) * dtype.itemsize


def yardsticks(lists: Lists) -> Calls:
    """What torch itself reaches on the same lists."""
    return {
        ("y += a x", "torch"): (lambda: torch._foreach_add_(lists.backup, lists.x, alpha=1e-7), 3),
        ("copy", "torch"): (lambda: torch._foreach_copy_(lists.backup, lists.p), 2),
    }


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
        ("restore_", name): (lambda: kernels.restore_(p, backup), 2),
        ("swap_", name): (lambda: kernels.swap_(p, backup), 4),
        ("accumulate_", name): (lambda: kernels.accumulate_(backup, x, lists.tiny), 3),
        ("combine_", name): (lambda: kernels.combine_(backup, x, g, lists.tiny, lists.tiny), 3),
        ("adamw_step_", name): (lambda: kernels.adamw_step_(p, g, m, v, [], [], *scalars, **adam), 7),
        ("sgd_step_", name): (lambda: kernels.sgd_step_(p, g, m, [], *scalars, momentum=0.9), 5),
        ("lamb_step_", name): (lambda: kernels.lamb_step_(p, g, m, v, [], *scalars, **adam), 10),
    }


def kernel_steps(kernels: ModuleType, lists: Lists) -> Calls:
    """Whole steps through the kernels."""
    adam = {"beta1": BETAS[0], "beta2": BETAS[1], "eps": EPS}

    def update(factor: torch.Tensor, clear: bool) -> None:
        kernels.adamw_step_(
            lists.p, lists.g, lists.m, lists.v, [], [], lists.steps, factor, lists.lr, lists.decay, **adam, zero_grads=clear
        )  # fmt: skip

    def clipped(clear: bool) -> None:
        norm = kernels.norm_dot(lists.g)[0].sqrt()
        update((1.0 / (norm + 1e-6)).clamp(max=1.0), clear)

    def displaced() -> None:
        kernels.perturb_(lists.p, lists.backup, lists.x, lists.tiny)
        kernels.restore_(lists.p, lists.backup)

    return {
        (CLIP_STEP, kernels.NAME): (lambda: clipped(True), 9),
        (COMPOSITE, kernels.NAME): (lambda: (displaced(), clipped(False)), 14),
        (WITH_UPDATE, kernels.NAME): (lambda: (displaced(), update(lists.one, False)), 13),
    }


def torch_steps(lists: Lists, compiled: bool) -> Calls:
    """The same through torch's optimizers; `compiled` adds torch.compile of the foreach form."""
    params = [torch.nn.Parameter(p) for p in lists.p]
    for p, g in zip(params, lists.g, strict=True):
        p.grad = g

    def optimizer(**kind: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, **kind)

    def clip_step(opt: torch.optim.Optimizer, clear: bool) -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        opt.step()
        if clear:
            opt.zero_grad(set_to_none=False)

    @torch.no_grad()
    def displaced() -> None:
        torch._foreach_copy_(lists.backup, lists.p)
        torch._foreach_add_(lists.p, lists.x, alpha=1e-7)
        torch._foreach_copy_(lists.p, lists.backup)

    fused, foreach = optimizer(fused=True), optimizer(foreach=True)
    calls: Calls = {
        (CLIP_STEP, "torch fused"): (lambda: clip_step(fused, True), 9),
        (CLIP_STEP, "torch foreach"): (lambda: clip_step(foreach, True), 9),
        (COMPOSITE, "torch foreach"): (lambda: (displaced(), clip_step(foreach, False)), 14),
    }
    if compiled:
        together = torch.compile(lambda: (displaced(), clip_step(foreach, False)))
        try:
            together()
        except Exception as error:  # a compiler that is missing or refuses is no reason to lose the other figures
            print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            calls[COMPOSITE, "torch compiled"] = (together, 14)
    return calls


class Clock:
    """Times calls: with events on a device, with the host's clock on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"

    def seconds(self, call: Callable[[], object]) -> Callable[[], float]:
        """Runs the call now; what it returns gives the time once the device is done."""
        if not self._on_device:
            start = time.perf_counter()
            call()
            passed = time.perf_counter() - start
            return lambda: passed
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        """Until all calls are done."""
        if self._on_device:
            torch.cuda.synchronize()


def medians(calls: Calls, device: torch.device, seconds: float) -> dict[tuple[str, str], float]:
    """Median seconds of each call; one of each a round, so that all meet the same clocks; at least 3 rounds, at most 100."""
    clock = Clock(device)
    for call, _ in calls.values():  # the first call builds and loads, the second one fills caches
        call(), call()
    clock.wait()
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    start = time.perf_counter()
    for turn in range(100):
        if turn >= 3 and time.perf_counter() - start > seconds:
            break
        pending = {key: clock.seconds(call) for key, (call, _) in calls.items()}
        clock.wait()
        for key, passed in pending.items():
            taken[key].append(passed())
    return {key: statistics.median(values) for key, values in taken.items()}


def rows(
    workload: str, shapes: list[tuple[int, ...]], dtype: torch.dtype, device: torch.device, seconds: float
) -> list[Row]:
    """Every op, and every whole step in float32, on one workload."""
    lists = Lists(shapes, dtype, device)
    calls = yardsticks(lists)
    steps: Calls = torch_steps(lists, compiled="64M" in workload) if dtype == torch.float32 else {}
    for kernels in backends(device, dtype):
        calls |= ops_of(kernels, lists)
        if dtype == torch.float32:
            steps |= kernel_steps(kernels, lists)
    taken = medians(calls, device, seconds) | (medians(steps, device, seconds) if steps else {})
    rate = {key: tensors * lists.bytes / taken[key] / 1e9 for key, (_, tensors) in (calls | steps).items()}
    add = rate["y += a x", "torch"]
    kind = str(dtype).removeprefix("torch.")
    return [
        Row(workload, op, variant, kind, 1e6 * taken[op, variant], gbs, gbs / add)
        for (op, variant), gbs in rate.items()
    ]


def machine(device: torch.device) -> dict[str, object]:
    """Where the figures are from."""
    found: dict[str, object] = {"python": platform.python_version(), "torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120, help="for all measurements together, about")
    chosen = parser.parse_args(argv)
    device = torch.device(chosen.device)
    dtypes = (torch.float32, torch.bfloat16)
    share = chosen.seconds / (3 * len(workloads(chosen.quick)))
    results = [
        row
        for name, shapes in workloads(chosen.quick).items()
        for dtype in dtypes
        for row in rows(name, shapes, dtype, device, share)
    ]
    for r in results:
        print(
            f"{r.workload:<18} {r.dtype:<9} {r.op:<30} {r.variant:<14} {r.microseconds:>10.1f} us  {r.of_add:.3f} of add"
        )
    if chosen.json:
        with open(chosen.json, "w") as file:
            json.dump({"machine": machine(device), "rows": [asdict(row) for row in results]}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
