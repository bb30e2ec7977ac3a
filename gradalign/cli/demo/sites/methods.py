"""The arms: ways to fill `.grad`, with weights that were chosen on other seeds than the demo's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradalign.baselines import SAM, Reptile
from gradalign.cli.demo.backward import Backward, aligned_backward, plain_backward

MIXED = ", mixed"
BACKEND: Any = "reference"  # for 385 parameters no kernel is worth the build at its first use


@dataclass(frozen=True)
class Method:
    """One arm.

    Attributes:
        name: in the table.
        make: (model, warm-up steps) -> what fills `.grad`.
        passes: of a step, in units of plain training's.
        setting: the value of its own parameter, in words.
        aligned: whether it is gradalign's.
        mixed: whether its micro-batches are dealt without regard to the sites.
    """

    name: str
    make: Callable[[nn.Module, int], Backward]
    passes: int = 1
    setting: str = ""
    aligned: bool = False
    mixed: bool = False


def _baseline(name: str, method: Any, parameter: str, value: float, passes: int) -> Method:
    setting = f"{parameter} {value:g}"
    return Method(name, lambda model, warmup: method(model, value, backend=BACKEND).backward, passes, setting)


def _agreement(objective: str, normalize: str, weight: float, mixed: bool = False) -> Method:
    options = {"objective": objective, "normalize": normalize, "estimator": "leave_one_out", "backend": BACKEND}
    return Method(
        f"{objective}{MIXED}" if mixed else objective,
        lambda model, warmup: aligned_backward(weight, warmup, **options)(model),
        passes=2,
        setting=f"weight {weight:g}",
        aligned=True,
        mixed=mixed,
    )


REPTILE = _baseline("Reptile", Reptile, "inner lr", 0.5, passes=1)
PLAIN = Method("plain", lambda model, warmup: plain_backward(model))
METHODS = (
    PLAIN,
    _baseline("SAM", SAM, "rho", 0.3, passes=2),
    REPTILE,
    _agreement("dot", "gradient", 0.9),
    _agreement("variance", "direction", 3.0),
    _agreement("cosine", "none", 0.3),
    _agreement("variance", "direction", 3.0, mixed=True),
    _agreement("cosine", "none", 0.3, mixed=True),
)
LONGER = "plain, equal time"
