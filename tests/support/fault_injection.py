"""Errors in the loss, in its backward pass and at chosen lines of the package."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import gradalign

PACKAGE = str(Path(gradalign.__file__).parent)


class InjectedError(Exception):
    """Raised where a test wants it."""


class FailingBackward(torch.autograd.Function):
    """The identity, whose backward pass raises the given error."""

    @staticmethod
    def forward(ctx, loss, error):
        ctx.error = error
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        raise ctx.error


def lines(run, interrupt_at=None, functions=None):
    """Count the lines of the package that `run` executes, and interrupt it at one of them.

    Args:
        run: called without arguments.
        interrupt_at: the line, counted from 1, at which KeyboardInterrupt is raised; None: nowhere.
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
            if count == interrupt_at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return count
