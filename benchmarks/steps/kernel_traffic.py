"""What gradalign's kernels do within a step: calls, bytes and seconds of every op, and the bandwidth they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.steps.task import Stepper
from benchmarks.timing import HostClock
from gradalign.backends import dispatch

Tensors = Sequence[Tensor]


def size(tensors: Tensors | None) -> int:
    """Bytes of all tensors."""
    return sum(t.numel() * t.element_size() for t in tensors or ())


def _perturb(
    params: Tensors,
    backups: Tensors,
    xs: Tensors,
    scale: Tensor,
    ys: Tensors | None = None,
    scale_y: Tensor | None = None,
    from_backups: bool = False,
) -> int:
    kept = 0 if from_backups else size(backups)
    return (size(backups) if from_backups else size(params)) + size(xs) + size(ys) + kept + size(params)


# What an op must read and write (the table in docs/kernels.md), from the arguments of a call.
BYTES: dict[str, Callable[..., int]] = {
    "norm_dot": lambda xs, ys=None: size(xs) + size(ys),
    "perturb_": _perturb,
    "restore_": lambda params, backups: size(params) + size(backups),
    "swap_": lambda params, backups: 2 * (size(params) + size(backups)),
    "accumulate_": lambda accs, grads, scale: 2 * size(accs) + size(grads),
    "combine_": lambda outs, xs, ys, a, b: size(outs) + size(xs) + size(ys),
}


class KernelTraffic:
    """Counts per op, in `ops`: {"calls", "bytes", "seconds"}.

    Args:
        device: waited for around every call, so that the seconds are the op's own.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = HostClock(device)
        self.ops: dict[str, dict[str, float]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Counts the calls of every backend."""
        replaced = []
        for backend in map(dispatch.load, dispatch.ORDER):
            for name, count in BYTES.items():
                op = getattr(backend, name, None)
                if op is not None:
                    replaced.append((backend, name, op))
                    setattr(backend, name, self._counted(name, op, count))
        try:
            yield
        finally:
            for backend, name, op in replaced:
                setattr(backend, name, op)

    def _counted(self, name: str, op: Callable[..., Any], count: Callable[..., int]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = self._clock.now()
            found = op(*args, **kwargs)
            entry = self.ops.setdefault(name, {"calls": 0, "bytes": 0, "seconds": 0.0})
            entry["seconds"] += self._clock.now() - begun
            entry["calls"] += 1
            entry["bytes"] += count(*args, **kwargs)
            return found

        return call


class WithTraffic:
    """A contender whose steps are recorded.

    Args:
        method: has `step(micro_batches)`.
        device: of its parameters.
    """

    def __init__(self, method: Stepper, device: torch.device) -> None:
        self._method, self._traffic = method, KernelTraffic(device)
        self.num_steps = 0

    def step(self, micro_batches: list[Any]) -> None:
        """One step."""
        with self._traffic.recording():
            self._method.step(micro_batches)
        self.num_steps += 1

    def mean(self) -> dict[str, dict[str, float]]:
        """Calls, bytes and seconds of every op in a step."""
        ops = self._traffic.ops.items()
        return {name: {key: value / self.num_steps for key, value in entry.items()} for name, entry in ops}


def bandwidth(numel: int, dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """Bytes a second of in-place `y += a x` on n elements: two reads and one write, as fast as memory allows."""
    y, x = (torch.ones(numel, dtype=dtype, device=device) for _ in range(2))
    clock, seconds = HostClock(device), []
    loops = max(1, 2**20 // numel)  # one call on few elements is shorter than the clock can tell
    for _ in range(repeats + 1):
        begun = clock.now()
        for _ in range(loops):
            y.add_(x, alpha=1e-3)
        seconds.append((clock.now() - begun) / loops)
    return 3 * numel * y.element_size() / min(seconds[1:])
