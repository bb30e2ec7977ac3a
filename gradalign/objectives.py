"""What agreement means: one small class per A, saying what the displacement is.

Micro-batch i is displaced along `v = alpha x + beta g_i`, where x is the mean of the gradients (or of the unit gradients) of
the micro-batches it is compared with. `grad A = 2 mean_i H_i v_i` for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradalign.engine import validation


@dataclass(frozen=True)
class Dots:
    """Inner products of the reference x and a micro-batch's own gradient g; 0-dim tensors."""

    xx: Tensor
    xg: Tensor
    gg: Tensor

    def norm_of(self, alpha: Tensor, beta: Tensor) -> Tensor:
        """||alpha x + beta g||."""
        square = alpha**2 * self.xx + 2 * alpha * beta * self.xg + beta**2 * self.gg
        return square.clamp_min(0).sqrt()


@dataclass(frozen=True)
class Objective:
    """The displacement of an A as a combination of two gradients.

    Attributes:
        alpha: the factor of x, where it is a constant.
        beta: the factor of g_i, where it is a constant.
        unit: x is the mean of unit gradients instead of the mean of gradients.
    """

    alpha: float
    beta: float = 0.0
    unit: bool = False

    @property
    def own(self) -> bool:
        """Whether the displacement of a micro-batch contains its own gradient."""
        return self.unit or self.beta != 0

    def coefficients(self, dots: Dots) -> tuple[Tensor, Tensor]:
        """(alpha, beta) as 0-dim tensors."""
        return torch.full_like(dots.xx, self.alpha), torch.full_like(dots.xx, self.beta)


class Cosine(Objective):
    """A = mean cos(g_i, g_j): v_i = (u - (u . g_i^) g_i^) / ||g_i||, u the mean unit gradient."""

    def coefficients(self, dots: Dots) -> tuple[Tensor, Tensor]:
        """(1 / ||g||, -(u . g) / ||g||^3)."""
        norm = dots.gg.sqrt()
        return 1 / norm, -dots.xg / norm**3


ObjectiveName = Literal["dot", "variance", "cosine", "norm"]

OBJECTIVES: dict[str, Objective] = {
    "dot": Objective(alpha=1.0),  # A = mean g_i . g_j: v = a
    "norm": Objective(alpha=-1.0),  # A = -mean g_i . g_j: v = -a
    "variance": Objective(alpha=1.0, beta=-1.0),  # A = -(sample variance of the g_i): v_i = a - g_i
    "cosine": Cosine(alpha=1.0, beta=-1.0, unit=True),
}


def objective(name: ObjectiveName) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: an unknown name.
    """
    return OBJECTIVES[validation.one_of("objective", name, OBJECTIVES)]
