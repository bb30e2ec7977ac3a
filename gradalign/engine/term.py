"""The sum of Hessian-vector products, kept apart from the large factor in front of differences of gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from gradalign.engine.space import ParamSpace, Vector, there


class Term:
    """term = unit * vector.

    A difference of gradients is divided by the length of the displacement: a factor of hundreds. In the loss of a displaced
    pass, whatever is not linear in backward would see it (hooks that clamp, float16). So the first factor is taken out as the
    unit: passes are differentiated at ratios near 1, and the unit goes into the last sum.

    Args:
        space: the parameters.
        largest: how many times the first factor later ones will be, where that is known.
        rescaled: whether the term will be rescaled, so that `parts` are needed.

    Attributes:
        vector: what passes add to.
        unit: 0-dim tensor; None: 1.
        parts: where it will be rescaled, the sum of the squares of the gradients that were subtracted, over what this process
            holds; None: there were none. Differences of gradients are rounded as these are, however small they are themselves.
    """

    def __init__(self, space: ParamSpace, largest: float = 1.0, rescaled: bool = False) -> None:
        self._space = space
        self.vector: Vector = space.zeros()
        self.unit: Tensor | None = None
        self.rescaled = rescaled
        self.parts: Tensor | None = None
        self._largest = largest
        self._last: tuple[Tensor, Tensor] | None = None  # a gain, and its ratio

    def subtract(self, g: Vector, ratio: Tensor, *, give: bool = False) -> None:
        """vector <- vector - ratio g.

        Args:
            g: a gradient.
            ratio: its factor.
            give: whether its tensors may become those of the vector.
        """
        space = self._space
        if any(map(there, self.vector)):
            square = space.accumulate(self.vector, g, -ratio)[0]
            if self.rescaled:
                self.note(square, ratio)
            return
        if self.rescaled:
            self.note(space.partial_norm_dot(g)[0], ratio)
        # There is nothing to add to: zeros need not be written and read.
        first = g if give else [None if t is None else torch.empty_like(t) for t in g]
        space.combine(first, g, g, -ratio, space.zero())
        self.vector[:] = first

    def note(self, square: Tensor, ratio: Tensor) -> None:
        """ratio g was subtracted, or will be, g.g being this square."""
        part = square * ratio**2
        self.parts = part if self.parts is None else self.parts + part

    def ratio(self, gain: Tensor) -> Tensor:
        """A factor in units of the first one."""
        if self.unit is None:
            largest = gain if self._largest == 1 else gain * self._largest
            self.unit = torch.where(gain != 0, largest, 1.0)
        if self._last is None or self._last[0] is not gain:
            self._last = gain, gain / self.unit
        return self._last[1]
