"""What the native extension `gradalign._C` says of its build."""

from __future__ import annotations

import importlib


def examine() -> dict[str, object]:
    """Compiler and target; or {"why_not": reason} where the extension cannot be built or loaded."""
    try:
        return {**importlib.import_module("gradalign._C").build_info(), "why_not": None}
    except Exception as error:  # a broken installation is what doctor is asked about
        return {"why_not": str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"}


def as_text(found: dict) -> list[str]:
    """The findings as lines of "name  value"."""
    if found["why_not"] is not None:
        return [f"  not built     {found['why_not']}"]
    return [
        f"  compiler      {found['compiler']}",
        f"  built for     {found['built_for']}, C++ {found['cplusplus']}, sources {found['digest'][:12]}",
    ]
