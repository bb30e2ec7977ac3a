"""What a process does once: `functools.cache` lets two threads that ask at the same time both do it."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
_lock = threading.RLock()


def once(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """`functools.cache` for what must not run twice, as registering ops, or at the same time, as building them.

    All functions of the kind take turns, since they call each other.
    """
    cached = functools.cache(function)

    @functools.wraps(function)
    def run(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        with _lock:
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    run.cache_clear = cached.cache_clear  # type: ignore[attr-defined]
    return run


def _new_lock() -> None:
    """Another thread may have held the lock when the process was forked, and is not there to give it back."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)
