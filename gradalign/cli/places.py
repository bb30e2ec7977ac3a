"""The device a command runs on and the directory it writes to, both checked before the work begins."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gradalign.cli.errors import CommandError


def default_device() -> str:
    """A CUDA device where PyTorch can use one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        CommandError: PyTorch does not know it, cannot use it here, or it stores no values (meta).
    """
    try:
        tensor = torch.zeros(1, device=name)
        tensor.item()
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: a device that another package provides
        reason = str(error).splitlines()[0]
        raise CommandError(
            f"--device: expected one that PyTorch can use here, such as cpu; got {name!r}: {reason}"
        ) from error
    return tensor.device


def make_directory(path: Path) -> None:
    """Makes the directory of --out and writes a temporary file to it, before the work whose results go there.

    Raises:
        CommandError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(f"--out: expected a directory that can be written; got {path}: {reason}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what was written there gets its name when it is complete and on the disk."""
    part = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")  # another process may write the same file
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes all of a text or nothing."""
    with whole_file(path) as part:
        part.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes plain data as JSON, with null for numbers that are not finite, which JSON cannot hold."""
    write_text(path, json.dumps(_without_nonfinite(value), indent=1, allow_nan=False) + "\n")


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
