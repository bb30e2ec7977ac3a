"""What the values of options may be: `type=` functions for argparse, which say expected and got."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def count(least: int) -> Callable[[str], int]:
    """An integer of at least `least`."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {least}; got {text!r}")
        return int(text)

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
