"""What a guard counts: operations that reach torch's dispatcher, and calls of Python functions. Both repeat exactly."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Dispatched(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and go on."""
        self.ops[func.name()] += 1
        return func(*args, **(kwargs or {}))


def dispatched(step: Callable[[], Any]) -> Counter[str]:
    """Operations of a step that is warm."""
    step()
    with Dispatched() as mode:
        step()
    return mode.ops


def python_calls(step: Callable[[], Any]) -> int:
    """Calls of Python functions in a step that is warm."""
    step()
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    return calls
