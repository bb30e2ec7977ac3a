"""The command line: `gradalign demo`, `gradalign tune`, `gradalign doctor`.

A subcommand is one file here with two functions, and one name in `COMMANDS`:

    add_parser(subparsers) -> None    adds its arguments; imports nothing heavy
    run(args) -> int                  does the work, returns the exit code

A `CommandError` raised in `run` is printed as it is, without a traceback, and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from gradalign._version import __version__
from gradalign.cli.errors import CommandError

COMMANDS = ("demo", "tune", "doctor")

__all__ = ["COMMANDS", "CommandError", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit code: 0, what the subcommand says, 2 for wrong arguments or something missing, 130 after Ctrl-C.
    """
    name = "gradalign"
    try:
        args = parser().parse_args(argv)
        name = f"gradalign {args.command}"
        return args.run(args)
    except CommandError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The parser with every subcommand; each parsed namespace carries its `run`."""
    top = argparse.ArgumentParser(
        prog="gradalign", description="Train with gradients that agree between micro-batches."
    )
    top.add_argument("--version", action="version", version=f"gradalign {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"gradalign.cli.{name}")
        command.add_parser(subparsers)
        subparsers.choices[name].set_defaults(run=command.run)
    return top
