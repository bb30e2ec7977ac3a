"""Where binaries are kept, and why that place can be trusted.

What lies in the cache is loaded into the process, so whoever can write to it can run code as the user: a folder that others
can write is refused. A binary appears under its final name by one rename, complete or not at all; a lock makes processes that
start together build once.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(RuntimeError):
    """Another user could have written to the cache."""


def directory() -> Path:
    """$GRADALIGN_CACHE_DIR, else gradalign in $XDG_CACHE_HOME, else ~/.cache/gradalign.

    Raises:
        FileNotFoundError: none of them is known: a user without a home, as in some containers.
    """
    chosen = os.environ.get("GRADALIGN_CACHE_DIR")
    try:
        if chosen:
            return Path(chosen).expanduser().resolve()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache").expanduser().resolve() / "gradalign"
    except RuntimeError as error:
        raise FileNotFoundError("there is no home folder") from error


def open_directory() -> Path:
    """The cache, made for its owner alone if it is not there, and checked.

    Raises:
        UntrustedError: it, or a folder above it, can be written by others, or it belongs to somebody else.
    """
    root = directory()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owned(root)
    for folder in root.parents:
        _check_ancestor(folder)
    return root


def check_owned(path: Path) -> None:
    """`path` belongs to this user, and nobody else can write to it."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid():
        raise UntrustedError(f"{path} belongs to somebody else (user {status.st_uid}); {_remedy()}")
    if status.st_mode & OTHERS_WRITE:
        raise UntrustedError(f"others can write to {path}; run chmod go-w on it, or {_remedy()}")


def _check_ancestor(folder: Path) -> None:
    # Who can write to a folder above can put another one in our folder's place, unless the sticky bit keeps what others own.
    status = folder.stat()
    if status.st_uid not in (0, os.getuid()):
        raise UntrustedError(f"{folder} belongs to somebody else (user {status.st_uid}); {_remedy()}")
    writable = status.st_mode & (stat.S_IWOTH if _is_private_group(status.st_gid) else OTHERS_WRITE)
    if writable and not status.st_mode & stat.S_ISVTX:
        raise UntrustedError(f"others can write to {folder}, above the cache; {_remedy()}")


def _is_private_group(gid: int) -> bool:
    # Many systems give each user a group of the same name and let it write.
    import grp
    import pwd

    try:
        group = grp.getgrgid(gid)
        return group.gr_name == pwd.getpwuid(os.getuid()).pw_name and not group.gr_mem
    except KeyError:
        return False


def _remedy() -> str:
    return "set GRADALIGN_CACHE_DIR to a folder that only you can write"


def find(key: str, name: str) -> Path | None:
    """The binary under `key`, if it is there; checked like the folder."""
    binary = open_directory() / key / name
    if not binary.is_file():
        return None
    check_owned(binary.parent)
    check_owned(binary)
    return binary


@contextmanager
def locked(key: str) -> Iterator[None]:
    """Held by one process (and one thread) at a time; released by the system if the process dies."""
    import fcntl

    with open(os.open(open_directory() / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o600), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def build_folder(key: str) -> Iterator[Path]:
    """A folder to build in, under the lock of `key`; leftovers of interrupted builds go first, and it goes last."""
    root = open_directory()
    for leftover in root.glob(f"{key}.work-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{key}.work-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(key: str, binary: Path) -> Path:
    """Give a finished binary its name, by one rename."""
    with tempfile.TemporaryDirectory(prefix=f"{key}.work-", dir=open_directory()) as staging:
        ready = Path(staging) / "ready"
        ready.mkdir(mode=0o700)
        binary.chmod(0o700)
        binary.rename(ready / binary.name)
        ready.rename(directory() / key)
    return directory() / key / binary.name
