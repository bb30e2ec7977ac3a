"""The backup of displaced parameters, and how they come back whatever happens."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from gradalign.space import ParamSpace, Vector


class Theta(Enum):
    """Where the undisplaced values are."""

    IN_PARAMS = "in the parameters"
    LEAVING = "in a parameter that was not written since, else in its backup"
    IN_BACKUPS = "in the backups"
    RETURNING = "in a parameter that was written since, else in its backup"


class Displacement:
    """Parameters at theta + d with a backup of theta, and the way back.

    An exception (KeyboardInterrupt too) can strike inside an op or between it and the line that notes its end. What was
    written by then is read from the parameters' version counters: the ops complete a backup before they write its
    parameter, and count the write together with it.
    """

    def __init__(self, space: ParamSpace) -> None:
        self._space = space
        self._backups: Vector = space.zeros()
        self._members: list[int] = []
        self._versions: list[int] = []
        self._theta = Theta.IN_PARAMS

    @property
    def active(self) -> bool:
        """Whether the parameters are displaced."""
        return self._theta is not Theta.IN_PARAMS

    def displace(self, x: Vector, scale: Tensor, y: Vector | None = None, scale_y: Tensor | None = None) -> Tensor:
        """theta -> theta + d, d = scale x + scale_y y, on the measured parameters that x or y reaches.

        Returns:
            float64 tensor [delta.d, d.d, delta.delta] on the home device; delta is what the dtypes could represent of d.
        """
        space = self._space
        self._members = [i for i in space.measured if x[i] is not None or (y is not None and y[i] is not None)]
        for i in self._members:
            self._backups[i] = torch.empty_like(space.params[i])
        self._watch()
        self._theta = Theta.LEAVING
        sums = space.perturb(self._backups, x, scale, y, scale_y, self._members)
        self._theta = Theta.IN_BACKUPS
        self._moved()
        return sums

    def reflect(self) -> None:
        """theta + delta -> theta - delta."""
        self._space.reflect(self._backups, self._members)
        self._moved()

    def step_out(self) -> None:
        """Back to theta, keeping the displaced values for `step_in`."""
        self._watch()
        self._theta = Theta.RETURNING
        self._space.swap_out(self._backups, self._members)
        self._theta = Theta.IN_PARAMS
        self._moved()

    def step_in(self) -> None:
        """Back to the displaced values that `step_out` kept."""
        self._watch()
        self._theta = Theta.LEAVING
        self._space.swap_in(self._backups, self._members)
        self._theta = Theta.IN_BACKUPS
        self._moved()

    def restore(self) -> None:
        """Back to theta, bit for bit, from wherever the parameters are; the backups are let go."""
        if self._theta is Theta.IN_BACKUPS:
            self._space.restore(self._backups, self._members)
        elif self._theta is not Theta.IN_PARAMS:
            written = self._theta is Theta.LEAVING
            params = self._space.params
            away = [
                i for i, v in zip(self._members, self._versions, strict=True) if (params[i]._version != v) is written
            ]
            self._space.restore(self._backups, away)
        self._theta = Theta.IN_PARAMS
        self._backups = self._space.zeros()
        self._moved()

    def _watch(self) -> None:
        self._versions = [self._space.params[i]._version for i in self._members]

    @staticmethod
    def _moved() -> None:
        torch.clear_autocast_cache()  # it may hold low-precision copies of the values before the move
