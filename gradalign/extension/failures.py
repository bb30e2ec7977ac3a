"""Builds that failed, remembered beside the cache: a process that starts later has the reason without half a minute's wait.

The name of a log holds the key of the binary, so that other sources, flags, another torch or another version of the compiler
are tried. Its first line is the commands of the compilers; the rest is what they wrote.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from . import cache, private_folder

LONGEST = 200  # characters of the compiler's words in a message of one line


def remember(key: str, commands: str, output: str) -> None:
    """Keeps what the compiler wrote, whole or not at all."""
    root = cache.open_directory()
    descriptor, name = tempfile.mkstemp(prefix=f"{key}.work-", dir=root)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(f"{commands}\n{output}\n")
        Path(name).replace(_log(key))
    except BaseException:
        os.unlink(name)
        raise


def recall(key: str, commands: str, what: str) -> str | None:
    """Why a build with these commands failed, in one line with the remedy; None where it has not failed.

    Raises:
        UntrustedError: others can write to the log.
    """
    log = _log(key)
    try:
        private_folder.check_owned(log)
        tried, _, output = log.read_text(encoding="utf-8", errors="replace").partition("\n")
    except FileNotFoundError:
        return None
    if tried != commands:
        return None
    return (
        f"{commands} could not build {what}: {_first_error(output)}; all of it is in {log}; "
        "correct it, then delete that file to try again"
    )


def forget(key: str) -> None:
    """After a build that did not fail."""
    _log(key).unlink(missing_ok=True)


def _log(key: str) -> Path:
    return cache.directory() / f"{key}.log"


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"\berror\b|cannot find|not found|No such file", line)]
    line = (told or lines[-1:] or ["it said nothing"])[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
