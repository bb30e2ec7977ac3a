"""What arguments of the wrong kind are told: expected, got, remedy. Whether they are in range is asked in `step_checks`."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from gradalign import step_checks

NUMBERS = ("lr", "eps", "weight_decay", "momentum", "dampening")
OF_ALL_GROUPS = ("max_grad_norm", "clear", "skip_nonfinite", "backend")


def settings(group: Mapping[str, Any]) -> None:
    """The settings of a parameter group are of the right kind and in range, and a group may have them."""
    for name in OF_ALL_GROUPS:
        if name in group:
            raise ValueError(
                f"{name}: expected one for all groups together; got {group[name]!r} in a parameter group; pass it to the "
                "optimizer itself"
            )
    for name in NUMBERS:
        number(name, group.get(name, 0.0))
    if "betas" in group:
        betas(group["betas"])
    not_differentiable(group.get("differentiable", False))
    step_checks.settings(group)


def number(name: str, value: object) -> None:
    """A real number, or a tensor that holds one."""
    if not isinstance(value, (Real, Tensor)):
        raise TypeError(f"{name}: expected a number or a 0-dim tensor; got {type(value).__name__} ({value!r})")


def betas(values: Any) -> tuple[float, ...]:
    """Two decay rates in [0, 1), as numbers."""
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise ValueError(f"betas: expected two decay rates, as in (0.9, 0.999); got {values!r}")
    for i, value in enumerate(values):
        number(f"betas[{i}]", value)
    return step_checks.betas(values)


def clip_norm(value: float | Tensor | None) -> None:
    """A norm to clip to, or None."""
    if value is None:
        return
    number("max_grad_norm", value)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"max_grad_norm: expected a 0-dim tensor; got shape {tuple(value.shape)}")
    if not value > 0:
        raise ValueError(f"max_grad_norm: expected a number above 0, or None to not clip; got {value!r}")


def not_differentiable(value: bool) -> None:
    """No graph of the step is asked for."""
    if value:
        raise ValueError(
            f"differentiable: expected False; got {value!r}; a fused step writes in place and leaves no graph; use torch's "
            "class of the same name to differentiate through a step"
        )
