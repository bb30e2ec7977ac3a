"""The command line: `gradalign demo`, `gradalign tune`, `gradalign doctor`.

Each subcommand is a module here, listed in `COMMANDS`, with two functions:

    add_parser(subparsers) -> None    adds its options; imports no optional package
    run(args) -> int                  runs it and returns the exit code

A `CommandError` raised in `run` is printed without a traceback; the exit code is then 2. Where the reader of the output has
gone, as in `gradalign doctor | head -1`, it ends without a message; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
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
        The exit code: that of the subcommand, 2 after a `CommandError`, 130 after Ctrl-C, 1 where nobody reads the output any
        more.
    """
    try:
        try:
            code = _run(argv)
        except SystemExit:  # of the parser, after --help
            _flush()
            raise
        _flush()
        return code
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return 1


def _flush() -> None:
    """Write out what was printed: what is left to Python's own end fails there."""
    if sys.stdout is not None:  # closed before the start
        sys.stdout.flush()


def _reader_has_gone() -> bool:
    """Whether nobody reads what is printed; the rest then goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


def _run(argv: Sequence[str] | None) -> int:
    """The exit code of the subcommand, or of the error that ended it."""
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
    """The parser of all subcommands; the parsed namespace holds the chosen one's `run`."""
    top = argparse.ArgumentParser(
        prog="gradalign",
        description="Train with gradients that agree between micro-batches.",
        epilog="Start with: gradalign doctor; gradalign demo. Every COMMAND has --help. The documentation is README.md and "
        "docs/ of the source tree; help(gradalign.GradAlign) in Python.",
    )
    top.add_argument("--version", action="version", version=f"gradalign {__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"gradalign.cli.{name}")
        command.add_parser(subparsers)
        subparsers.choices[name].set_defaults(run=command.run)
    return top
