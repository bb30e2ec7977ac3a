"""Arguments that somebody would set as attributes, without any effect."""

from __future__ import annotations

from typing import Any


class GivenOnce:
    """An argument of a class, in the place of the attribute of its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} keeps no attribute {self._name!r}")

    def __set__(self, instance: object, value: object) -> None:
        remedy = ", or give it as a function of the step, weight=lambda step: ..." if self._name == "weight" else ""
        raise AttributeError(
            f"{self._name}: expected as an argument of {type(instance).__name__}; got an assignment, which would change "
            f"nothing; make a new {type(instance).__name__}{remedy}"
        )
