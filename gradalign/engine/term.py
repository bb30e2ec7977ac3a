"""The sum of Hessian-vector products, kept apart from the large factor in front of differences of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from gradalign.engine.space import ParamSpace, Vector


class Term:
    """term = unit * vector.

    A difference of gradients is divided by the length of the displacement: a factor of hundreds. In the loss of a displaced
    pass, whatever is not linear in backward would see it (hooks that clamp, float16). So the first factor is taken out as the
    unit: passes are differentiated at ratios near 1, and the unit goes into the last sum.

    Args:
        space: the parameters.
        unit: where it is known beforehand.
        largest: how many times the first factor later ones will be, where that is known.

    Attributes:
        vector: what passes add to.
        unit: 0-dim tensor; None: 1.
    """

    def __init__(self, space: ParamSpace, unit: Tensor | None = None, largest: float = 1.0) -> None:
        self.vector: Vector = space.zeros()
        self.unit = unit
        self._largest = largest
        self._last: tuple[Tensor, Tensor] | None = None  # a gain, and its ratio

    def ratio(self, gain: Tensor) -> Tensor:
        """A factor in units of the first one."""
        if self.unit is None:
            self.unit = torch.where(gain != 0, gain * self._largest, 1.0)
        if self._last is None or self._last[0] is not gain:
            self._last = gain, gain / self.unit
        return self._last[1]
