"""Builds that failed, remembered beside the cache: a process that starts later has the reason without half a minute's wait.

The name of a log holds the key of the binary, so that other sources, flags, another torch or another version of the compiler
are tried. Its first line is the commands of the compilers; the rest is what they wrote. What says nothing of the sources, such
as a full disk or a killed compiler, is not remembered: the next process tries again.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from . import cache, private_folder

LONGEST = 200  # characters of the compiler's words in a message of one line
# The words of systems, shells and compilers, for what may be otherwise the next time.
PASSING = re.compile(
    r"No space left|Disk quota|File size limit|Cannot allocate memory|memory exhausted|[Oo]ut of memory"
    r"|what\(\):\s+std::bad_alloc|instance of 'std::bad_alloc'|Resource temporarily unavailable|CPU time limit"
    r"|^(?:Killed|Terminated|Hangup)\b|\b(?:Killed|Terminated|Hangup) signal terminated program"
    r"|\bsignal (?:1|2|9|15|24|25)\b|\b[Ii]nterrupted\b"
)
# Commands and paths that are no UTF-8 are read as they were written.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


def is_passing(output: str) -> bool:
    """Whether the build failed for want of memory or disk, or was killed: the same sources may build the next time."""
    return any(PASSING.search(line) for line in _said(output))


def remember(key: str, commands: str, output: str) -> None:
    """Keeps what the compiler wrote, whole or not at all."""
    root = cache.open_directory()
    descriptor, name = tempfile.mkstemp(prefix=f"{key}.work-", dir=root)
    try:
        with open(descriptor, "w", **TEXT) as file:
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
        tried, _, output = log.read_text(**TEXT).partition("\n")
    except FileNotFoundError:
        return None
    if tried != commands or is_passing(output):  # earlier versions remembered those too
        return None
    return reason(key, commands, what, output)


def reason(key: str, commands: str, what: str, output: str) -> str:
    """Why a build failed, in one line with the remedy."""
    failed = f"{commands} could not build {what}: {_first_error(output)}"
    if is_passing(output):
        return f"{failed}; make sure that there is enough memory and disk space, then start again"
    return f"{failed}; all of it is in {_log(key)}; correct it, then delete that file to try again"


def forget(key: str) -> None:
    """After a build that did not fail."""
    _log(key).unlink(missing_ok=True)


def _said(output: str) -> list[str]:
    """The lines of compilers, without the commands that they and ninja were given: names of folders say nothing."""
    lines = [line.strip() for line in output.splitlines()[1:]]
    return [line for line in lines if line and not line.endswith("|| exit $?")]


def _log(key: str) -> Path:
    return cache.directory() / f"{key}.log"


def _first_error(output: str) -> str:
    lines = _said(output)
    passing = [line for line in lines if PASSING.search(line)]  # first: other errors may only follow from it
    told = [line for line in lines if re.search(r"\berror\b|cannot find|not found|No such file", line)]
    line = (passing or told or lines[-1:] or ["it said nothing"])[0]
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"  # the end often says what is wrong
