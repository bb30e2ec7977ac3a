"""The contract of an estimator: a frozen configuration that makes the schedule of a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from gradalign.engine.memory import Memory
from gradalign.engine.plain import Plain
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import NORMALIZATIONS, Settings, Step


class Estimator(ABC):
    """Which micro-batches are compared with which, with the options of that choice.

    A new estimator is one file in `gradalign/estimators` with a frozen dataclass derived from this one, and one row in
    `gradalign.estimators.ESTIMATORS`. One instance may serve several aligners: what changes from step to step is in `Memory`.

    Attributes:
        name: what it is called in `GradAlign(estimator=...)` and in messages.
        own_direction: whether it can displace a micro-batch along its own gradient, as variance and cosine do.
        normalizations: the normalisations that it knows.
        by_source: whether it can compare sources with several micro-batches each.
        separates: whether it can let the micro-batches of every rank count by themselves.
    """

    name: ClassVar[str]
    own_direction: ClassVar[bool] = True
    normalizations: ClassVar[tuple[str, ...]] = NORMALIZATIONS
    by_source: ClassVar[bool] = False
    separates: ClassVar[bool] = False

    @abstractmethod
    def make(self, step: Step, total: Vector) -> Schedule:
        """The schedule of a step with the term.

        Args:
            step: what its passes share.
            total: becomes `.grad`; a tensor or None for each parameter.

        Returns:
            The passes, none of which has run.
        """

    def make_inactive(self, step: Step, total: Vector) -> Schedule:
        """The schedule of a step without the term, between steps that have it.

        Args:
            step: what its passes share.
            total: becomes `.grad`.

        Returns:
            The passes; by default those of the plain loop.
        """
        return Plain(step, total)

    def memory(self, optimizer: Any) -> Memory:
        """What one aligner carries from step to step.

        Args:
            optimizer: the `gradalign.optim` optimizer that the aligner was given, or None.

        Returns:
            Its state; by default none.
        """
        return Memory()

    def check(self, settings: Settings, objective: str) -> None:
        """Refuse an objective or a normalisation that it cannot estimate.

        Args:
            settings: of the aligner.
            objective: its name.

        Raises:
            ValueError: names both.
        """
        if settings.objective.own and not self.own_direction:
            raise ValueError(
                f'estimator "{self.name}": expected objective "dot" or "norm"; got "{objective}", whose displacements differ '
                'between micro-batches; use "split", "prefix" or "leave_one_out"'
            )
        if settings.separate:
            self._check_separate(settings)
        if settings.normalize not in self.normalizations:
            raise ValueError(
                f'estimator "{self.name}": expected normalize in {self.normalizations}; got "{settings.normalize}"'
            )

    def _check_separate(self, settings: Settings) -> None:
        if not self.separates:
            raise ValueError(
                f'scope="rank": expected estimator "split" or "leave_one_out"; got "{self.name}"; use scope="all", which '
                "is the same where displacements do not depend on the micro-batch"
            )
        if settings.telemetry or settings.normalize == "gradient":
            raise ValueError(
                'scope="rank": expected no telemetry and normalize "direction" or "none", since no rank knows the '
                "others' gradients; got one of them; "
                'use scope="all"'
            )
