"""Input validation that several modules share; a check with one caller stands beside its caller.

Every message says what was expected, what was given and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """`value` if it is one of `allowed`."""
    allowed = sorted(allowed)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}; got {value!r}")
    return str(value)


def real(name: str, value: object) -> float:
    """`value` as a float, if it is a real number (NumPy's count, tensors and booleans do not)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number; got {type(value).__name__} ({value!r})")
    return float(value)


def positive(name: str, value: object, unit: str) -> float:
    """`value` if it is a finite number above 0."""
    number = real(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name}: expected a finite number above 0 ({unit}); got {value!r}")
    return number


def finite(name: str, value: object) -> float:
    """`value` as a float, if it is a finite real number."""
    number = real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number; got {value!r}")
    return number


def count(name: str, value: object, least: int) -> int:
    """`value` if it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer of at least {least}; got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}; got {value}")
    return value


def real_and_whole(p: Tensor) -> None:
    """The parameter is neither complex nor a shard."""
    if p.is_complex():
        raise TypeError(f"expected real parameters; got {p.dtype}; use torch.view_as_real on a real parameter instead")
    if hasattr(p, "placements"):
        raise TypeError(
            "expected whole parameters; got a DTensor that was not one when GradAlign or the optimizer was made; apply "
            "fully_shard or parallelize_module before"
        )


def callable_(name: str, value: object, remedy: str) -> None:
    """Something that can be called to compute a loss."""
    if not callable(value):
        raise TypeError(
            f"{name}: expected a function that computes the loss; got {type(value).__name__}; pass {remedy}"
        )


# Parts of a batch that a DataLoader collates: x, y, perhaps a mask. What has more is not looked at in every step.
MOST_PARTS = 4


def micro_batches(value: object, least: int = 2) -> list:
    """At least two micro-batches, as a list; one where other ranks have more."""
    if isinstance(value, (Tensor, Mapping, str)) or not isinstance(value, Iterable):
        raise TypeError(
            f"micro_batches: expected a list of micro-batches; got {type(value).__name__}; "
            "split one large batch with gradalign.chunk(batch, k)"
        )
    if isinstance(value, DataLoader):
        raise TypeError(
            "micro_batches: expected those of one step; got a DataLoader, all of whose batches would be one step; iterate it, "
            "and split each batch with gradalign.chunk(batch, k)"
        )
    batches = list(value)
    if len(batches) <= MOST_PARTS and _one_batch(batches):
        found = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in batches[:3])
        raise ValueError(
            f"micro_batches: expected a list of micro-batches; got tensors that look like the parts of one batch ({found}); "
            "split it with gradalign.chunk(batch, k)"
        )
    if len(batches) < least:
        raise ValueError(
            f"micro_batches: expected at least {least}, to compare their gradients; got {len(batches)}; "
            "split one large batch with gradalign.chunk(batch, k)"
        )
    return batches


def _one_batch(batches: list) -> bool:
    """Whether tensors with equally many rows differ in dtype or number of dimensions, as x and y of one batch do."""
    if not all(isinstance(t, Tensor) and t.dim() for t in batches) or len({t.size(0) for t in batches}) != 1:
        return False
    return batches[0].size(0) > 1 and len({(t.dim(), t.dtype) for t in batches}) > 1


def fraction(name: str, value: object) -> float:
    """`value` if it is above 0 and at most 1."""
    number = finite(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"{name}: expected a number above 0 and at most 1; got {value!r}")
    return number


def gradalign_optimizer(optimizer: Any) -> Any:
    """An optimizer that shows its masters and first moments; that of Accelerate around it is taken off."""
    inner = getattr(optimizer, "optimizer", None)
    optimizer = inner if hasattr(inner, "master") else optimizer
    if not (hasattr(optimizer, "master") and hasattr(optimizer, "first_moment")):
        raise TypeError(
            f"optimizer: expected an optimizer of gradalign.optim; got {type(optimizer).__qualname__}; "
            "pass none: any optimizer can step the gradients that GradAlign fills in"
        )
    return optimizer


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False; got {value!r}")
    return value


def figure_class(name: str) -> Any:
    """Matplotlib's class of a figure that needs no display and no global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{name}: expected matplotlib; got none; pip install matplotlib") from error
    return Figure
