"""What the commands that write shipped texts as files have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from gradalign.cli import places
from gradalign.cli.errors import CommandError

_Texts = TypeVar("_Texts")


def folder_and_texts(
    argv: Sequence[str] | None, description: str | None, read: Callable[[], _Texts]
) -> tuple[Path, _Texts]:
    """The folder that the command names, made if it is not there, and the texts; the process ends where one cannot be had.

    Args:
        argv: arguments of the command.
        description: what `--help` says of it.
        read: finds the texts.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    try:
        places.make_directory(folder)
        return folder, read()
    except CommandError as error:
        sys.exit(f"error: {error}")
