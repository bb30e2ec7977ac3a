"""What options may be: `type=` functions for argparse, which say expected and got; and which go together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from gradalign.cli.errors import CommandError


def count(least: int) -> Callable[[str], int]:
    """An integer of at least `least`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}; got {text!r}")
        return number

    return parse


def number(text: str) -> float:
    """Any number, nan and inf too."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number; got {text!r}") from None


def finite(text: str) -> float:
    """A finite number."""
    if not math.isfinite(number(text)):
        raise argparse.ArgumentTypeError(f"expected a finite number; got {text!r}")
    return float(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    if not 0 < number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text!r}")
    return float(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= number(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1; got {text!r}")
    return float(text)


def settle(args: argparse.Namespace, needed: str, got: str | None, **defaults: Any) -> None:
    """Fills in the defaults of options that were not given, which are None or False until then.

    Args:
        args: the options; changed in place.
        needed: with what alone these options do something.
        got: what is there in its place; None where `needed` is there.
        defaults: by the name of the option.

    Raises:
        CommandError: one was given that would do nothing.
    """
    given = [name for name in defaults if getattr(args, name) is not None and getattr(args, name) is not False]
    if given and got is not None:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CommandError(f"{names}: expected only with {needed}; got {got}, where that does nothing; leave it out")
    for name in defaults.keys() - set(given):
        setattr(args, name, defaults[name])
