"""Where a command works and where it writes, both tried before any time is spent."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from gradalign.cli.errors import CommandError


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        CommandError: PyTorch knows none, cannot use it here, or it holds no numbers (meta).
    """
    try:
        tensor = torch.zeros(1, device=name)
        tensor.item()
    except (RuntimeError, AssertionError, ImportError) as error:  # ImportError: a device that another package brings
        reason = str(error).splitlines()[0]
        raise CommandError(
            f"--device: expected one that PyTorch can use here, such as cpu; got {name!r}: {reason}"
        ) from error
    return tensor.device


def make_directory(path: Path) -> None:
    """Makes the directory of --out, and writes to it once: what is to be kept comes at the end of the work.

    Raises:
        CommandError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise CommandError(f"--out: expected a directory that can be written; got {path}: {reason}") from error
