"""The weight of the term, step by step."""

from __future__ import annotations

from collections.abc import Callable

from gradalign.engine import validation


class Weight:
    """A number or a function of the step (counted from 0), in every `every`-th step and times `every`.

    Args:
        value: the number or the function.
        every: the term is there in steps with `step % every == 0`.

    Raises:
        ValueError: a number that is not finite, an `every` below 1.
        TypeError: neither a number nor a function; an `every` that is no integer.
    """

    def __init__(self, value: float | Callable[[int], float], every: int = 1) -> None:
        self._value = value if callable(value) else validation.finite("weight", value)
        self._every = validation.count("every", every, least=1)

    def at(self, step: int) -> float:
        """The weight of a step, 0 in a step without the term."""
        if step % self._every:
            return 0.0
        value = self._value
        return self._every * (validation.finite("weight(step)", value(step)) if callable(value) else value)

    @property
    def may_act(self) -> bool:
        """Whether any step may have the term."""
        return callable(self._value) or self._value != 0


ONE = Weight(1.0)
