"""Displaced parameters, their backup, and their way back after any exception."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.engine.space import ParamSpace, Vector, there


class Theta(Enum):
    """Where the undisplaced values are."""

    IN_PARAMS = "in the parameters"
    LEAVING = "in a parameter that was not written since, else in its backup"
    IN_BACKUPS = "in the backups"
    RETURNING = "in a parameter that was written since, else in its backup"


class Displacement:
    """Parameters at theta + d with a backup of theta, and the way back.

    An exception (KeyboardInterrupt too) can come inside an op, or between it and the line that records its end. The version
    counters then tell which parameters were written: the ops complete a backup before they write its parameter, and raise the
    version together with the write. Where parameters share a counter (pieces of one tensor, each made a Parameter) it cannot
    tell: all backups are complete then before the first parameter is written.

    A parameter whose optimizer keeps a float32 master needs no backup: theta is the rounding of the master, which is only read
    here, and the displaced value is round(master + d).

    Args:
        space: the parameters.
        masters: the master of each parameter, or None.
        follow_master: brings the master of a parameter up to date after somebody else wrote the parameter.
    """

    def __init__(
        self,
        space: ParamSpace,
        masters: Vector | None = None,
        follow_master: Callable[[Tensor], Any] | None = None,
    ) -> None:
        self._space = space
        self._masters = space.zeros() if masters is None else masters
        self._backups: Vector = space.zeros()
        self._moved: list[int] = []  # displaced
        self._with_master: list[int] = []  # of those, with a master
        self._with_backup: list[int] = []  # with a backup
        self._versions: list[int] = []
        self._asked: list[int] = []  # the parameters that were asked for a shared version counter last
        self._shared = False  # and whether they have one
        self._theta = Theta.IN_PARAMS
        self._follow_master = follow_master
        # Versions of the parameters with masters when they were last known to be the rounding of their masters.
        self._rounded: dict[int, int] = {}
        if masters is not None:
            tensors = space.tensors
            self._rounded = {i: tensors[i]._version for i, m in enumerate(masters) if m is not None}

    @property
    def active(self) -> bool:
        """Whether the parameters are displaced."""
        return self._theta is not Theta.IN_PARAMS

    @property
    def with_masters(self) -> bool:
        """Whether a parameter has a master."""
        return bool(self._rounded)

    def num_moved(self) -> Tensor:
        """How many elements of the displaced parameters differ from theta; an int64 tensor on the home device."""
        space = self._space
        theta = [(i, self._backups[i]) for i in self._with_backup] + [(i, self._masters[i]) for i in self._with_master]
        moved = [(space.params[i] != t.to(space.params[i].dtype)).sum() for i, t in theta if t is not None]
        none = torch.zeros((), dtype=torch.int64, device=space.home)
        return torch.stack([none, *(n.to(space.home) for n in moved)]).sum()

    def displace(self, x: Vector, scale: Tensor, y: Vector | None = None, scale_y: Tensor | None = None) -> Tensor:
        """theta -> theta + d, d = scale x + scale_y y, on the measured parameters that x or y reaches.

        Where they are displaced already, to theta + d at once: theta is read from where it is kept.

        Returns:
            float64 tensor [delta.d, d.d, delta.delta] on the home device; delta is what the dtypes could represent of d.
        """
        space, masters = self._space, self._masters
        moved = space.measured
        if not all(map(there, x)):
            moved = [i for i in moved if x[i] is not None or (y is not None and y[i] is not None)]
        if self._theta is not Theta.IN_BACKUPS or moved != self._moved:
            if self.active:
                self.restore()
            self._choose_backups(moved)
        complete = self._theta is Theta.IN_BACKUPS
        sums = space.perturb(self._backups, x, scale, y, scale_y, self._with_backup, from_backups=complete)
        if self._with_master:
            sums = sums + space.perturb(masters, x, scale, y, scale_y, self._with_master, from_backups=True)
        self._theta = Theta.IN_BACKUPS
        self._after_move()
        return sums

    def _choose_backups(self, moved: list[int]) -> None:
        """Where theta of these parameters is kept; they are about to leave it."""
        self._moved, self._with_master, self._with_backup = moved, [], moved
        if self._rounded:
            self._with_master = [i for i in moved if self._masters[i] is not None]
            self._with_backup = [i for i in moved if self._masters[i] is None]
        self._follow_masters()
        self._ask_for_shared_counters()
        if self._shared:
            self._backups = self._copied(self._backups, self._with_backup)
            self._theta = Theta.IN_BACKUPS
            return
        tensors = self._space.tensors
        for i in self._with_backup:
            self._backups[i] = torch.empty_like(tensors[i])
        self._record_versions()
        self._theta = Theta.LEAVING

    def displace_into(self, direction: Vector, scale: Tensor) -> None:
        """theta -> theta + scale direction, without masters; theta goes into the memory of the direction, which is used up.

        Tensors of the direction whose memory is not their own alone, or not their value, are only read.

        Args:
            direction: tensors that nobody else holds; emptied.
            scale: 0-dim tensor on the home device.
        """
        space, tensors = self._space, self._space.tensors
        self._with_master = []
        self._moved = self._with_backup = [i for i in space.measured if direction[i] is not None]
        displaced, theta, steps = space.zeros(), space.zeros(), space.zeros()
        held = Counter(t.data_ptr() for t in direction if t is not None)
        for i in self._with_backup:
            theta[i], step = tensors[i], direction[i]
            assert step is not None
            steps[i], alike = step, step.stride() == tensors[i].stride() and step.dtype == tensors[i].dtype
            usable = alike and _has_memory_of_its_own(step) and held[step.data_ptr()] == 1
            displaced[i] = step if usable else torch.empty_like(tensors[i], requires_grad=False)
        self._ask_for_shared_counters()
        space.combine(displaced, theta, steps, space.one(), scale)
        self._backups = displaced
        direction.clear()
        self.step_in()

    def reflect(self) -> None:
        """theta + delta -> theta - delta."""
        self._space.reflect(self._backups, self._with_backup)
        self._space.reflect(self._masters, self._with_master)
        self._after_move()

    def step_out(self) -> None:
        """Back to theta, keeping the displaced values for `step_in`."""
        if self._shared:
            displaced = self._copied(self._backups, self._moved)
            self.restore()
            self._backups = displaced
            return
        self._backups = self._copied(self._backups, self._with_master)
        self._record_versions()
        self._theta = Theta.RETURNING
        self._space.swap_out(self._backups, self._with_backup)
        self._space.restore(self._masters, self._with_master)
        self._note_rounded()
        self._theta = Theta.IN_PARAMS
        self._after_move()

    def step_in(self) -> None:
        """Back to the displaced values that `step_out` kept."""
        self._follow_masters()
        displaced = self._backups
        if self._shared:
            self._backups = self._copied(displaced, self._with_backup)
            self._theta = Theta.IN_BACKUPS
            self._space.restore(displaced, self._with_backup)
        else:
            self._record_versions()
            self._theta = Theta.LEAVING
            self._space.swap_in(self._backups, self._with_backup)
        self._space.restore(displaced, self._with_master)
        self._theta = Theta.IN_BACKUPS
        self._after_move()

    def restore(self) -> None:
        """Back to theta, bit for bit, from wherever the parameters are; the backups are let go."""
        if self._theta is not Theta.IN_PARAMS:
            self._space.restore(self._backups, self._in_backups())
            if self._with_master:
                self._space.restore(self._masters, self._with_master)
                self._note_rounded()
        self._theta = Theta.IN_PARAMS
        self._backups = self._space.zeros()
        self._after_move()

    def rounded(self) -> list[Parameter]:
        """The parameters that are the rounding of their masters: those that nobody wrote since."""
        params, tensors = self._space.params, self._space.tensors
        return [params[i] for i, version in self._rounded.items() if tensors[i]._version == version]

    def _note_rounded(self) -> None:
        tensors = self._space.tensors
        self._rounded.update((i, tensors[i]._version) for i in self._with_master)

    def _follow_masters(self) -> None:
        """A forward may have written parameters (Embedding's max_norm) since their masters were brought up to date."""
        params, tensors = self._space.params, self._space.tensors
        for i in self._with_master:
            if self._follow_master is not None and tensors[i]._version != self._rounded[i]:
                self._follow_master(params[i])
                self._rounded[i] = tensors[i]._version

    def _in_backups(self) -> list[int]:
        """The parameters whose values of theta are in the backups."""
        if self._theta is Theta.IN_BACKUPS:
            return self._with_backup
        written = self._theta is Theta.LEAVING
        tensors = self._space.tensors
        pairs = zip(self._with_backup, self._versions, strict=True)
        return [i for i, version in pairs if (tensors[i]._version != version) is written]

    def _ask_for_shared_counters(self) -> None:
        """Whether a write into one of the parameters with a backup raises the version of another: by raising all of them.

        They are about to be written, which raises their versions anyhow. Asked once in a step for the same parameters.
        """
        if self._with_backup is self._asked or self._with_backup == self._asked:
            return
        which = [self._space.tensors[i] for i in self._with_backup]
        before = [t._version for t in which]
        torch.autograd.graph.increment_version(which)
        self._shared = any(t._version != v + 1 for t, v in zip(which, before, strict=True))
        self._asked = self._with_backup

    def _copied(self, backups: Vector, which: list[int]) -> Vector:
        """The backups, those of these parameters being copies of what the parameters are now."""
        tensors, copied = self._space.tensors, list(backups)
        for i in which:
            copied[i] = tensors[i].detach().clone()
        return copied

    def _record_versions(self) -> None:
        tensors = self._space.tensors
        self._versions = [tensors[i]._version for i in self._with_backup]

    def _after_move(self) -> None:
        self._space.after_move()


def _has_memory_of_its_own(t: Tensor) -> bool:
    """Whether its values are all that its memory holds, once and with their sign: a backward may return views of one buffer."""
    return not t.is_neg() and t.untyped_storage().nbytes() == t.numel() * t.element_size()


@contextmanager
def no_writes(tensors: Sequence[Tensor], name: str, why: str) -> Iterator[None]:
    """A pass whose gradient counts, at other parameters than theta: what its forward writes into them would be undone.

    Args:
        tensors: what the forward computes with.
        name: of the method, for the message.
        why: there is no pass at theta, and what to use instead.

    Raises:
        RuntimeError: a tensor was written, or has other memory.
    """
    before = [(t.data_ptr(), t._version) for t in tensors]
    yield
    if [(t.data_ptr(), t._version) for t in tensors] != before:
        raise RuntimeError(
            f"{name}: expected a forward that leaves parameters alone; got one that writes them, as Embedding(max_norm=...) "
            f"does: {why}"
        )
