"""The binaries, ready to load: shipped with the package, from the cache, or compiled now."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from . import cache, compiler, cuda, failures, library

log = logging.getLogger("gradalign")


class UnavailableError(RuntimeError):
    """Why there is no binary, in one line, with the remedy."""


def ensure(binary: library.Library) -> Path:
    """The path of a binary that fits, compiling it if there is none.

    Raises:
        UnavailableError: switched off, no compiler, an untrusted cache, or a compiler that refused.
    """
    if switched_off():
        raise UnavailableError("switched off by GRADALIGN_NATIVE=0; unset it")
    ready = shipped(binary)
    if ready is not None:
        return ready
    try:
        return _cached(binary, _compiler())
    except cache.UntrustedError as error:
        raise UnavailableError(f"the cache is refused: {error}") from error
    except OSError as error:
        raise UnavailableError(
            f"the cache cannot be used: {error}; set GRADALIGN_CACHE_DIR to a folder that can be written"
        ) from error


def switched_off() -> bool:
    """Whether GRADALIGN_NATIVE=0 is set."""
    return os.environ.get("GRADALIGN_NATIVE") == "0"


def build_all(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Every binary that can be built here, ahead of time, and the record that tells later whether it fits.

    Raises:
        CompileError: the compiler refused.
    """
    for make in (library.cpu, library.module, cuda.ahead_of_time):
        try:
            binary, found = make(), _compiler()
        except (ModuleNotFoundError, UnavailableError) as error:
            _report(f"not built ahead of time: {error}")
            continue
        place = folder / binary.name.split(".")[0]
        place.mkdir(parents=True, exist_ok=True)
        _report(f"building {binary.what} with {found.version}")
        path = compiler.build(binary, found, place.resolve(), _build_defines(binary, found))
        yield (
            path,
            {"digest": binary.digest(), "built_for": binary.built_for, "architectures": " ".join(binary.architectures)},
        )


def _compiler() -> compiler.Compiler:
    if os.name != "posix":
        raise UnavailableError("native kernels are built on Linux and macOS only")
    found = compiler.find_compiler()
    named = os.environ.get("CXX")
    if found is None and named:
        raise UnavailableError(
            f"CXX: expected the command of a C++ compiler; got {named!r}, which does not run; correct it or unset it"
        )
    if found is None:
        raise UnavailableError("no C++ compiler found; install g++ or clang++, or set CXX")
    return found


def _cached(binary: library.Library, found: compiler.Compiler) -> Path:
    key = binary.key(found.version)
    ready = _kept(binary, found, key)
    if ready is not None:
        return ready
    with cache.locked(key):
        ready = _kept(binary, found, key)  # another process may have built it while this one waited
        return ready if ready is not None else _build(binary, found, key)


def _kept(binary: library.Library, found: compiler.Compiler, key: str) -> Path | None:
    """The binary from the cache, None where it was not tried; an error where the build is known to fail."""
    ready = cache.find(key, binary.name)
    if ready is None:
        _refuse_if_failed(binary, found, key)
    return ready


def _refuse_if_failed(binary: library.Library, found: compiler.Compiler, key: str) -> None:
    reason = failures.recall(key, _commands(binary, found), binary.what)
    if reason is not None:
        raise _refused(reason)


def _refused(reason: str) -> UnavailableError:
    _report(reason)
    return UnavailableError(reason)


def _commands(binary: library.Library, found: compiler.Compiler) -> str:
    return shlex.join(binary.linker or found.command)


def _build(binary: library.Library, found: compiler.Compiler, key: str) -> Path:
    duration = "1 to 3 minutes on two cores" if binary.linker else "about 5 to 30 seconds"
    _report(
        f"building {binary.what} with {shlex.join(binary.linker) or found.version}; {duration}, once for this version of "
        "gradalign and torch"
    )
    start = time.monotonic()
    with cache.build_folder(key) as folder:
        try:
            made = compiler.build(binary, found, folder, _build_defines(binary, found))
        except compiler.CompileError as error:
            raise _note_failure(binary, found, key, str(error)) from None
        if binary.key(found.version) != key:
            raise UnavailableError(_changed(binary))
        path = cache.publish(key, made)
    failures.forget(key)
    _report(f"built {binary.what} in {time.monotonic() - start:.0f} s, kept in {path.parent}")
    return path


def _note_failure(binary: library.Library, found: compiler.Compiler, key: str, output: str) -> UnavailableError:
    """Remembers the failure, unless it may pass; the error of one line."""
    if binary.key(found.version) != key:  # half of them were of another version: says nothing of either
        return UnavailableError(_changed(binary))
    commands = _commands(binary, found)
    if not failures.is_passing(output):
        failures.remember(key, commands, output)
    return _refused(failures.reason(key, commands, binary.what, output))


def _changed(binary: library.Library) -> str:
    return f"the sources of {binary.what} changed while they were compiled; start again"


def _build_defines(binary: library.Library, found: compiler.Compiler) -> tuple[str, ...]:
    facts = {"COMPILER": found.version, "DIGEST": binary.digest(), "BUILT_FOR": binary.built_for}
    return tuple(f'-DGRADALIGN_{name}="{value}"' for name, value in facts.items())


def shipped(binary: library.Library) -> Path | None:
    """Built ahead of time: of these very sources, for these GPUs, for this torch or an older one (the ABI is stable)."""
    path = _package() / binary.name
    record = path.with_suffix(".json")
    if not (path.is_file() and record.is_file()):
        return None
    return path if _fits(record, binary) else None


def _fits(record: Path, binary: library.Library) -> bool:
    try:
        made = json.loads(record.read_text())
        digest, built_for, architectures = (str(made[fact]) for fact in ("digest", "built_for", "architectures"))
        return (
            digest == binary.digest()
            and _runs_on_this(built_for, binary.built_for)
            and cuda.cover(architectures.split(), binary.present)
        )
    except (OSError, ValueError, KeyError, TypeError):  # cut short, or not a record of ours
        return False


def _package() -> Path:
    return Path(__file__).resolve().parent.parent


def _runs_on_this(made_for: str, wanted: str) -> bool:
    (kind, made), (wanted_kind, want) = made_for.split(" ", 1), wanted.split(" ", 1)
    if kind != "torch":
        return made_for == wanted
    return kind == wanted_kind and _release(made) <= _release(want)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def load_module() -> ModuleType:
    """`gradalign._C`, loaded under that name.

    Raises:
        UnavailableError: it cannot be built, with the reason.
    """
    try:
        path = ensure(library.module())
    except ModuleNotFoundError as error:
        raise UnavailableError(str(error)) from error
    spec = importlib.util.spec_from_file_location("gradalign._C", path)
    if spec is None or spec.loader is None:
        raise UnavailableError(f"{path} is not an extension module of this Python")
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UnavailableError(why_not_loaded(error, path)) from error
    return module


def why_not_loaded(error: Exception, path: Path) -> str:
    """The reason of the system's loader, which torch leaves in the cause of its own error, with the remedy."""
    reason = str(error.__cause__ or error)
    # What Linux says of a file system that is mounted noexec.
    if "failed to map segment" in reason or "Operation not permitted" in reason:
        remedy = "set GRADALIGN_CACHE_DIR to a folder on a file system that is not mounted noexec"
    elif path.parent == _package():
        remedy = "reinstall gradalign"
    else:
        remedy = f"delete {path.parent} to build them again"
    return f"the built kernels do not load: {reason}; {remedy}"


def _report(message: str) -> None:
    # To stderr as well: a process that is silent for half a minute looks hung, and few programs configure logging.
    log.info(message)
    if sys.stderr is not None:  # None in a process without one, where print would take stdout
        with suppress(OSError, ValueError):  # one that is full or closed is no reason to do without the kernels
            print(f"gradalign: {message}", file=sys.stderr, flush=True)
