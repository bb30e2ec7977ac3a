"""Compiling: by ninja where it is installed, else by calling the compiler, as many calls at once as there are cores."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .library import COMMON, Library, sources

TEXT: dict[str, Any] = {
    "text": True,
    "encoding": "utf-8",
    "errors": "replace",
}  # whatever a compiler writes can be read


class CompileError(RuntimeError):
    """The compiler refused; the message holds what it wrote."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler and what it calls itself."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler | None:
    """$CXX, else the first of c++, g++ and clang++ that runs; None where there is none."""
    named = os.environ.get("CXX")
    for words in [_words(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        command = _anywhere(words)
        version = _version(command)
        if version is not None:
            return Compiler(tuple(command), version)
    return None


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quote that is not closed
        return []


def _anywhere(command: list[str]) -> list[str]:
    """The command as it runs from any folder, since builds run in one of their own; empty where there is none."""
    found = shutil.which(command[0]) if command else None
    if found is None:
        return []
    # Links are kept: ccache and others go by the name that they are called by.
    return command if os.path.isabs(found) else [str(Path(found).absolute()), *command[1:]]


def _version(command: list[str]) -> str | None:
    if not command:
        return None
    try:
        asked = subprocess.run([*command, "--version"], capture_output=True, check=False, timeout=60, **TEXT)
    except (OSError, subprocess.SubprocessError):
        return None
    if asked.returncode != 0 or not asked.stdout.strip():
        return None
    # It becomes a string in C++: what would end or change a string there is left out.
    return re.sub(r'[^ -~]|["\\\\]', "?", asked.stdout.strip().splitlines()[0])


def build(library: Library, compiler: Compiler, folder: Path, defines: tuple[str, ...] = ()) -> Path:
    """The binary, made in `folder` (which the caller owns).

    Raises:
        CompileError: the compiler refused.
    """
    objects = [unit.object for unit in library.units]
    commands = {
        unit.object: [
            *(unit.compiler or (*compiler.command, *COMMON)),
            *unit.flags,
            *(() if unit.compiler else defines),
            "-c",
            str(sources() / unit.source),
            "-o",
            unit.object,
        ]
        for unit in library.units
    }
    link = [*(library.linker or compiler.command), "-shared", "-o", library.name, *objects, *library.link]
    if not _built_by_ninja(library.name, commands, link, folder):
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda command: _run(command, folder), commands.values()))
        _run(link, folder)
    if not (folder / library.name).is_file():
        raise CompileError(f"{shlex.join(link)}\nended without an error, but made no {library.name}")
    return folder / library.name


def _built_by_ninja(name: str, commands: dict[str, list[str]], link: list[str], folder: Path) -> bool:
    """Whether ninja made the binary; False where there is no ninja, or one that does not work.

    Raises:
        CompileError: ninja works, and a command failed.
    """
    ninja = _ninja()
    if ninja is None:
        return False
    # The bytes of the file system: a path need not be text in the encoding of the locale.
    (folder / "build.ninja").write_bytes(os.fsencode(_ninja_file(name, commands, link)))
    try:
        _run(ninja, folder)
    except CompileError as error:
        if "\nFAILED: " in str(error):  # ninja's word for a command of ours that failed
            raise
        return False
    except OSError:
        return False
    return (folder / name).is_file()


def _ninja() -> list[str] | None:
    if shutil.which("ninja"):
        return ["ninja"]
    if importlib.util.find_spec("ninja") is not None:
        return [sys.executable, "-m", "ninja"]
    return None


def _ninja_file(name: str, commands: dict[str, list[str]], link: list[str]) -> str:
    def quoted(command: list[str]) -> str:
        # `||` keeps the shell waiting, which then says of a command that was killed that it was: not every ninja does.
        return f"{shlex.join(command)} || exit $?".replace("$", "$$")

    lines = ["rule run", "  command = $command", ""]
    for target, command in commands.items():
        lines += [f"build {target}: run", f"  command = {quoted(command)}", ""]
    lines += [f"build {name}: run {' '.join(commands)}", f"  command = {quoted(link)}", ""]
    return "\n".join(lines)


def _run(command: list[str], folder: Path) -> None:
    english = {**os.environ, "LC_ALL": "C"}  # what failed is looked for in what it writes
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, env=english, **TEXT
    )
    if done.returncode < 0:
        raise CompileError(f"{shlex.join(command)}\n{done.stdout}\nterminated with signal {-done.returncode}")
    if done.returncode != 0:
        raise CompileError(f"{shlex.join(command)}\n{done.stdout}")
