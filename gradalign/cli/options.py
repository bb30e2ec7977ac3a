"""Option values: `type=` functions for argparse, and the defaults of options that depend on others."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradalign.cli.errors import CommandError

LARGEST = 2**63 - 1  # what an int64 holds, and so a seed of torch
LARGEST_REAL = 1e37  # float32 holds 3.4e38, and the first step of AdamW is ten times the learning rate


def count(minimum: int) -> Callable[[str], int]:
    """An integer from `minimum` to `LARGEST`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}; got {text!r}")
        if number > LARGEST:
            raise argparse.ArgumentTypeError(f"expected an integer of at most {LARGEST}; got {text!r}")
        return number

    return parse


def number(text: str) -> float:
    """Any number, nan and inf included."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number; got {text!r}") from None


def finite(text: str) -> float:
    """A finite number, of at most `LARGEST_REAL` in magnitude."""
    if not math.isfinite(number(text)):
        raise argparse.ArgumentTypeError(f"expected a finite number; got {text!r}")
    return _held(text)


def positive(text: str) -> float:
    """A number above 0, of at most `LARGEST_REAL`."""
    if not 0 < number(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text!r}")
    return _held(text)


def _held(text: str) -> float:
    if abs(float(text)) > LARGEST_REAL:
        raise argparse.ArgumentTypeError(f"expected a number of at most {LARGEST_REAL:g} in magnitude; got {text!r}")
    return float(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= number(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1; got {text!r}")
    return float(text)


def file(text: str) -> Path:
    """The name of a file to write: no directory."""
    path = Path(text)
    separators = tuple(filter(None, (os.sep, os.altsep)))
    if not path.name or path.is_dir() or text.endswith(separators):
        raise argparse.ArgumentTypeError(f"expected the name of a file; got {text!r}, a directory")
    return path


def fill_defaults(args: argparse.Namespace, required: str, instead: str | None, **defaults: Any) -> None:
    """Fills in the defaults of options that only have an effect together with `required`.

    An option that was not given is None or False.

    Args:
        args: the options; changed in place.
        required: what these options need, as it is named in the message.
        instead: what was chosen in place of `required`; None where `required` is there.
        defaults: by the name of the option.

    Raises:
        CommandError: an option was given without `required`, so it would have no effect.
    """
    given = [name for name in defaults if getattr(args, name) is not None and getattr(args, name) is not False]
    if given and instead is not None:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CommandError(
            f"{names}: expected only with {required}; got {instead}, where it would have no effect; leave it out"
        )
    for name in defaults.keys() - set(given):
        setattr(args, name, defaults[name])
