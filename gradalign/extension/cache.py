"""Where binaries are kept, and why they can be loaded.

The folder is private (see `private_folder`). A binary appears under its final name by one rename, when it is on the disk;
its size and hash lie beside it, since loading a file that a full disk or a crash has cut short kills the process. A lock
makes processes that start together build once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import private_folder
from .private_folder import UntrustedError

__all__ = ["UntrustedError", "build_folder", "directory", "find", "locked", "open_directory", "publish"]


def directory() -> Path:
    """$GRADALIGN_CACHE_DIR, else gradalign in $XDG_CACHE_HOME, else ~/.cache/gradalign.

    Raises:
        FileNotFoundError: none of them is known (a user without a home, as in some containers), or the one that counts cannot
            be resolved.
    """
    chosen, base = os.environ.get("GRADALIGN_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return _resolved("GRADALIGN_CACHE_DIR", chosen)
    if base and os.path.isabs(base):  # the XDG specification: a relative one is to be ignored
        return _resolved("XDG_CACHE_HOME", base) / "gradalign"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise FileNotFoundError("there is no home folder") from error
    return _resolved("the home folder", str(home / ".cache")) / "gradalign"


def _resolved(name: str, value: str) -> Path:
    try:
        path = Path(value).expanduser().resolve()
        if not any(folder.is_symlink() for folder in (path, *path.parents)):
            return path
        reason = "a loop of links"  # which Python 3.13 leaves as it is
    except (OSError, RuntimeError) as error:
        reason = str(error)
    raise FileNotFoundError(f"{name}: expected a folder; got {value!r}, which cannot be resolved ({reason})")


def open_directory() -> Path:
    """The cache, made for its owner alone if it is not there, and checked.

    Raises:
        UntrustedError: it, or a folder above it, can be written by others, or it belongs to somebody else.
    """
    root = directory()
    private_folder.make(root)
    private_folder.check(root)
    return root


def find(key: str, name: str) -> Path | None:
    """The binary under `key`, if it is there as it was built; who can write to it is checked as for the folder."""
    binary = open_directory() / key / name
    if not binary.is_file():
        return None
    private_folder.check_owned(binary.parent)
    private_folder.check_owned(binary)
    return binary if _is_as_built(binary) else None


def _is_as_built(binary: Path) -> bool:
    try:
        return json.loads(_record_of(binary).read_text()) == _fingerprint(binary)
    except (FileNotFoundError, ValueError):  # kept by an earlier version, or cut short
        return False


def _record_of(binary: Path) -> Path:
    return binary.with_name(f"{binary.name}.json")


def _fingerprint(binary: Path) -> dict[str, object]:
    content = binary.read_bytes()
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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
    """Give a finished binary its name, by one rename, in the place of one that was not as built."""
    root = open_directory()
    with tempfile.TemporaryDirectory(prefix=f"{key}.work-", dir=root) as staging:
        ready = Path(staging) / "ready"
        private_folder.make(ready)
        binary.chmod(0o700)
        placed = binary.rename(ready / binary.name)
        record = _record_of(placed)
        record.write_text(json.dumps(_fingerprint(placed)))
        for path in (placed, record, ready):
            _flush_to_disk(path)
        if (root / key).exists():
            (root / key).rename(Path(staging) / "replaced")  # processes that have loaded it keep it
        ready.rename(root / key)
    _flush_to_disk(root)
    return root / key / binary.name


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
