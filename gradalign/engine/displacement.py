"""The backup of displaced parameters, and how they come back whatever happens."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from gradalign.engine.space import ParamSpace, Vector


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

    A parameter whose optimizer keeps a float32 master needs no backup: theta is the rounding of the master, which nothing here
    writes, and the displaced value is round(master + d).

    Args:
        space: the parameters.
        masters: the master of each parameter, or None.
    """

    def __init__(self, space: ParamSpace, masters: Vector | None = None) -> None:
        self._space = space
        self._masters = space.zeros() if masters is None else masters
        self._backups: Vector = space.zeros()
        self._mastered: list[int] = []  # displaced, with a master
        self._members: list[int] = []  # displaced, with a backup
        self._versions: list[int] = []
        self._theta = Theta.IN_PARAMS

    @property
    def active(self) -> bool:
        """Whether the parameters are displaced."""
        return self._theta is not Theta.IN_PARAMS

    @property
    def with_masters(self) -> bool:
        """Whether a parameter has a master."""
        return any(m is not None for m in self._masters)

    def num_moved(self) -> Tensor:
        """How many elements of the displaced parameters differ from theta; an int64 tensor on the home device."""
        space = self._space
        theta = [(i, self._backups[i]) for i in self._members] + [(i, self._masters[i]) for i in self._mastered]
        moved = [(space.params[i] != t.to(space.params[i].dtype)).sum() for i, t in theta if t is not None]
        return torch.stack([n.to(space.home) for n in moved]).sum() if moved else torch.zeros((), dtype=torch.int64)

    def displace(self, x: Vector, scale: Tensor, y: Vector | None = None, scale_y: Tensor | None = None) -> Tensor:
        """theta -> theta + d, d = scale x + scale_y y, on the measured parameters that x or y reaches.

        Returns:
            float64 tensor [delta.d, d.d, delta.delta] on the home device; delta is what the dtypes could represent of d.
        """
        space, masters = self._space, self._masters
        moved = [i for i in space.measured if x[i] is not None or (y is not None and y[i] is not None)]
        self._mastered = [i for i in moved if masters[i] is not None]
        self._members = [i for i in moved if masters[i] is None]
        for i in self._members:
            self._backups[i] = torch.empty_like(space.params[i])
        self._watch()
        self._theta = Theta.LEAVING
        sums = space.perturb(self._backups, x, scale, y, scale_y, self._members)
        if self._mastered:
            sums = sums + space.perturb(masters, x, scale, y, scale_y, self._mastered, from_backups=True)
        self._theta = Theta.IN_BACKUPS
        self._moved()
        return sums

    def reflect(self) -> None:
        """theta + delta -> theta - delta."""
        self._space.reflect(self._backups, self._members)
        self._space.reflect(self._masters, self._mastered)
        self._moved()

    def step_out(self) -> None:
        """Back to theta, keeping the displaced values for `step_in`."""
        for i in self._mastered:
            self._backups[i] = self._space.params[i].detach().clone()
        self._watch()
        self._theta = Theta.RETURNING
        self._space.swap_out(self._backups, self._members)
        self._space.restore(self._masters, self._mastered)
        self._theta = Theta.IN_PARAMS
        self._moved()

    def step_in(self) -> None:
        """Back to the displaced values that `step_out` kept."""
        self._watch()
        self._theta = Theta.LEAVING
        self._space.swap_in(self._backups, self._members)
        self._space.restore(self._backups, self._mastered)
        self._theta = Theta.IN_BACKUPS
        self._moved()

    def restore(self) -> None:
        """Back to theta, bit for bit, from wherever the parameters are; the backups are let go."""
        if self._theta is not Theta.IN_PARAMS:
            self._space.restore(self._backups, self._away())
            self._space.restore(self._masters, self._mastered)
        self._theta = Theta.IN_PARAMS
        self._backups = self._space.zeros()
        self._moved()

    def _away(self) -> list[int]:
        """The parameters whose values of theta are in the backups."""
        if self._theta is Theta.IN_BACKUPS:
            return self._members
        written = self._theta is Theta.LEAVING
        params = self._space.params
        pairs = zip(self._members, self._versions, strict=True)
        return [i for i, version in pairs if (params[i]._version != version) is written]

    def _watch(self) -> None:
        self._versions = [self._space.params[i]._version for i in self._members]

    @staticmethod
    def _moved() -> None:
        torch.clear_autocast_cache()  # it may hold low-precision copies of the values before the move
