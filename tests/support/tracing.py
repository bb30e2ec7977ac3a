"""Interrupts at chosen lines of the package."""

from __future__ import annotations

import sys
from pathlib import Path

import gradalign

PACKAGE = str(Path(gradalign.__file__).parent)


def lines(run, strike_at=None, functions=None):
    """Count the lines of the package that `run` executes, and interrupt it at one of them.

    Args:
        run: called without arguments.
        strike_at: the line, counted from 1, at which KeyboardInterrupt is raised; None: nowhere.
        functions: names of the functions whose lines count; None: all of the package.

    Returns:
        how many lines there were.
    """
    count = 0

    def trace(frame, event, _arg):
        nonlocal count
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE):
            return None
        if functions is not None and code.co_name not in functions:
            return None
        if event == "line":
            count += 1
            if count == strike_at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return count
