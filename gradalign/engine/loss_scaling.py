"""Who differentiates a loss, and what it is multiplied with before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossScaling:
    """What gradients and returned losses are to those of the L_i.

    Attributes:
        scale: of a GradScaler, 0-dim float64 tensor; 1 without one.
        share: turns a returned loss into L_i: 1, or k where it carries its 1/k.
        by_scaler: whether there is a GradScaler.
    """

    scale: Tensor
    share: int
    by_scaler: bool


def differentiation(
    backward: Callable[[Tensor], Any] | None, scaler: Any, one: Tensor
) -> tuple[Callable[[Tensor], Any], Tensor]:
    """Who differentiates a loss, and the loss scale in it.

    Args:
        backward: the user's, `accelerator.backward` for instance; None: autograd. An Accelerator's division by its
            gradient_accumulation_steps is cancelled where the bound method, or a partial of it, shows the Accelerator.
        scaler: the user's GradScaler, or None.
        one: 1 on the home device, a 0-dim float64 tensor.

    Returns:
        a function of an unscaled loss, and the scale as a 0-dim tensor.

    Raises:
        ValueError: two different GradScalers.
        TypeError: that of a DeepSpeed engine.
    """
    call = Tensor.backward if backward is None else backward
    bound = backward
    while isinstance(bound, partial):
        bound = bound.func
    owner = getattr(bound, "__self__", None)
    if any(cls.__name__ == "DeepSpeedEngine" for cls in type(owner).__mro__):
        raise TypeError(
            "backward: expected one that only differentiates; got DeepSpeedEngine.backward, which reduces and "
            "partitions gradients by itself; use DistributedDataParallel or fully_shard"
        )
    divides_by = getattr(owner, "gradient_accumulation_steps", 1)
    used: torch.amp.GradScaler | None = one_scaler(scaler, getattr(owner, "scaler", None))
    if used is None or not used.is_enabled():
        return (lambda loss: call(loss * divides_by)) if divides_by != 1 else call, one
    scale: Callable[[Tensor], Tensor] = used.scale if used is scaler else _unchanged
    return (lambda loss: call(scale(loss * divides_by))), used.scale(one)


def _unchanged(loss: Tensor) -> Tensor:
    return loss


def one_scaler(own: Any, other: Any) -> Any:
    """The one GradScaler of a step, or None."""
    if own is not None and other is not None and own is not other:
        raise ValueError(
            "scaler: expected one GradScaler; got one here and another that `backward` applies by itself; pass only the latter"
        )
    return own if own is not None else other


def grad_scaler(scaler: Any) -> Any:
    """A GradScaler, torch's or one that does the same, or None."""
    if scaler is not None and not (callable(getattr(scaler, "scale", None)) and hasattr(scaler, "is_enabled")):
        raise TypeError(f"scaler: expected a torch.amp.GradScaler or None; got {type(scaler).__name__}")
    return scaler
