"""What agreement means: for each A, what the displacement is.

Micro-batch i is displaced along `v = alpha x + beta g_i`, where x is the mean of the gradients (or of the unit gradients) of
the micro-batches it is compared with. `grad A = 2 mean_i H_i v_i` for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gradalign.engine import validation


@dataclass(frozen=True)
class Objective:
    """The displacement of an A as a combination of two gradients.

    Attributes:
        alpha: the factor of x, where it is a constant.
        beta: the factor of g_i, where it is a constant.
        unit: x is the mean u of unit gradients instead of the mean of gradients: v_i = (u - (u . g_i^) g_i^) / ||g_i||.
    """

    alpha: float
    beta: float = 0.0
    unit: bool = False

    @property
    def own(self) -> bool:
        """Whether the displacement of a micro-batch contains its own gradient."""
        return self.unit or self.beta != 0


ObjectiveName = Literal["dot", "variance", "cosine", "norm"]

OBJECTIVES: dict[str, Objective] = {
    "dot": Objective(alpha=1.0),  # A = mean g_i . g_j: v = a
    "norm": Objective(alpha=-1.0),  # A = -mean g_i . g_j: v = -a
    "variance": Objective(alpha=1.0, beta=-1.0),  # A = -(sample variance of the g_i): v_i = a - g_i
    # A = mean cos(g_i, g_j)
    "cosine": Objective(alpha=1.0, beta=-1.0, unit=True),
}


def objective(name: ObjectiveName) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: an unknown name.
    """
    return OBJECTIVES[validation.one_of("objective", name, OBJECTIVES)]
