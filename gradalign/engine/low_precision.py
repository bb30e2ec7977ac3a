"""A warning where the parameters' dtype cannot represent the displacement; it never waits for a device."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_COSINE = 0.5
LOW_PRECISION = frozenset({torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class DisplacementInfo:
    """What a step displaced, for the warning.

    Attributes:
        radius: length of the displacement asked for; None: unknown.
        dtypes: of the parameters.
        masters: whether some of them have float32 masters.
    """

    radius: float | None
    dtypes: frozenset[torch.dtype]
    masters: bool


class AsyncScalar:
    """A device scalar that is copied to pinned host memory without waiting."""

    def __init__(self, number: Tensor) -> None:
        self._host = torch.empty((), dtype=number.dtype, device="cpu", pin_memory=True)
        self._host.copy_(number, non_blocking=True)
        self._event = torch.Event(number.device)
        self._event.record(torch.accelerator.current_stream(number.device))

    def value(self) -> float | None:
        """The number, or None while it has not arrived; never waits."""
        return float(self._host) if self._event.query() else None


class DisplacementWatch:
    """Looks at every step's `displacement_cosine` and warns once when it is below `LEAST_COSINE`.

    On the CPU the number is there at once. On a device it is copied to the host asynchronously and read in a later step, once
    it has arrived; until then no second copy is started. Nothing is watched while a CUDA graph is captured (events cannot be
    queried then); the warm-up steps before the capture are.
    """

    def __init__(self) -> None:
        self._warned = False
        self._pending: tuple[AsyncScalar, DisplacementInfo] | None = None

    def note(self, cosine: Tensor | None, displaced: DisplacementInfo, stacklevel: int) -> None:
        """Take in the cosine of a step, and warn now or later.

        Args:
            cosine: between the displacement asked for and the one represented; None: nothing was displaced.
            displaced: what was displaced.
            stacklevel: of the frame that the warning names, counted from the caller (1) as `warnings.warn` does.
        """
        if self._warned or cosine is None:
            return
        if cosine.device.type == "cpu":
            self._judge(float(cosine), displaced, stacklevel + 1)
        elif not (cosine.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            self._follow(cosine, displaced, stacklevel + 1)

    def _follow(self, cosine: Tensor, displaced: DisplacementInfo, stacklevel: int) -> None:
        """Judge the number that has arrived; start to copy the next one."""
        if self._pending is not None:
            pending, earlier = self._pending
            value = pending.value()
            if value is None:
                return
            self._pending = None
            self._judge(value, earlier, stacklevel + 1)
        if not self._warned:
            self._pending = AsyncScalar(cosine), displaced

    def _judge(self, cosine: float, displaced: DisplacementInfo, stacklevel: int) -> None:
        if cosine < LEAST_COSINE:
            self._warned = True
            warnings.warn(message(cosine, displaced), UserWarning, stacklevel=stacklevel + 1)


def message(cosine: float, displaced: DisplacementInfo) -> str:
    """What the warning says."""
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in displaced.dtypes))
    length = "" if displaced.radius is None else f" of length {displaced.radius:g}"
    remedy = "a larger radius"
    if displaced.dtypes & LOW_PRECISION and not displaced.masters:
        remedy += " or fp32 masters (optimizer=gradalign.optim.AdamW(..., master_weights=True))"
    return (
        f"expected parameters that can represent a displacement{length}; got {names}, which rounds it to another direction "
        f"(cosine {cosine:.2f}, below {LEAST_COSINE:g}); use {remedy}; gradalign.tune measures which radius is enough"
    )
