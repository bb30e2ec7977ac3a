"""Arguments that are given once: they can be read as attributes, and an assignment, which would have no effect, is refused."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, KeysView, ValuesView
from dataclasses import is_dataclass
from typing import Any

# What a short description leaves out at these values, the defaults. All else says what is computed.
QUIET = {
    "probe_fraction": 0.25,
    "every": 1,
    "params": None,
    "scaler": None,
    "telemetry": False,
    "optimizer": None,
    "zeroed_grads": False,
    "check_replay": True,
    "backend": "auto",
    "per_micro_batch": False,
}


class GivenOnce:
    """An argument of a class, in the place of the attribute of its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type) -> Any:
        given = _given(instance)
        if self._name not in given:
            raise AttributeError(f"{owner.__name__} keeps no attribute {self._name!r}")
        return given[self._name]

    def __set__(self, instance: object, value: object) -> None:
        remedy = ", or give it as a function of the step, weight=lambda step: ..." if self._name == "weight" else ""
        raise AttributeError(
            f"{self._name}: expected as an argument of {type(instance).__name__}; got an assignment, which would change "
            f"nothing; make a new {type(instance).__name__}{remedy}"
        )


def keeps_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that notes what it was given, for `GivenOnce` and `described`.

    What is read only once, such as `model.parameters()`, is kept as a list.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        args, kwargs = tuple(map(_kept, args)), {name: _kept(value) for name, value in kwargs.items()}
        init(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        self._given = _given(self) | {name: value for name, value in bound.arguments.items() if value is not self}

    return noting


def described(instance: object) -> str:
    """What an object was given, in one line; no tensor is read."""
    parts = []
    for name, value in _given(instance).items():
        if name == "model":
            parts.append(_model(value))
        elif name not in QUIET or type(value) is not type(QUIET[name]) or value != QUIET[name]:
            parts.append(f"{name}={_value(name, value)}")
    return ", ".join(parts)


def _given(instance: object) -> dict[str, Any]:
    """What an object was given, as far as it is known: nothing before its constructor is done."""
    return getattr(instance, "__dict__", {}).get("_given", {})


def _kept(value: Any) -> Any:
    return list(value) if isinstance(value, (Iterator, KeysView, ValuesView)) else value


def _model(value: Any) -> str:
    several = isinstance(value, (list, tuple))
    return f"[{', '.join(type(m).__name__ for m in value)}]" if several else type(value).__name__


def _value(name: str, value: Any) -> str:
    if name == "weight" and callable(value):
        return "schedule"
    if name == "params" and isinstance(value, Iterable):
        return f"{len(list(value))} tensors"
    plain = value is None or isinstance(value, (bool, int, float, str)) or is_dataclass(value)
    return repr(value) if plain else type(value).__name__
