"""Folders that only this user can write: what is loaded from them runs as the user."""

from __future__ import annotations

import os
import stat
from pathlib import Path

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
REMEDY = "set GRADALIGN_CACHE_DIR to a folder that only you can write"


class UntrustedError(RuntimeError):
    """Another user could have written to the cache."""


def make(folder: Path) -> None:
    """Makes the folder and every missing one above it, each for its owner alone whatever the umask is."""
    if folder.is_dir():
        return
    make(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:  # another process was faster
        return
    folder.chmod(0o700)  # the mode of mkdir is subject to the umask


def check(folder: Path) -> None:
    """The folder belongs to this user, nobody else can write to it, and nobody else can put another one in its place.

    Raises:
        UntrustedError: it, or a folder above it, can be written by others, or belongs to somebody else.
    """
    check_owned(folder)
    for above in folder.parents:
        _check_ancestor(above)


def check_owned(path: Path) -> None:
    """`path` belongs to this user, and nobody else can write to it."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid():
        raise UntrustedError(f"{path} belongs to somebody else (user {status.st_uid}); {REMEDY}")
    if status.st_mode & OTHERS_WRITE:
        raise UntrustedError(f"others can write to {path}; run chmod go-w on it, or {REMEDY}")


def _check_ancestor(folder: Path) -> None:
    # Who can write to a folder above can put another one in our folder's place, unless the sticky bit keeps what others own.
    status = folder.stat()
    if status.st_uid not in (0, os.getuid()):
        raise UntrustedError(f"{folder} belongs to somebody else (user {status.st_uid}); {REMEDY}")
    writable = status.st_mode & (stat.S_IWOTH if _is_private_group(status.st_gid) else OTHERS_WRITE)
    if writable and not status.st_mode & stat.S_ISVTX:
        raise UntrustedError(f"others can write to {folder}, above the cache; run chmod go-w on it, or {REMEDY}")


def _is_private_group(gid: int) -> bool:
    # Many systems give each user a group of the same name and let it write.
    import grp
    import pwd

    try:
        group = grp.getgrgid(gid)
        return group.gr_name == pwd.getpwuid(os.getuid()).pw_name and not group.gr_mem
    except KeyError:
        return False
