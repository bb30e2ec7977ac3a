"""Compiling: by ninja where it is installed, else by calling the compiler, as many calls at once as there are cores."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .library import COMMON, Library, sources


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
    for command in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        if command and shutil.which(command[0]):
            asked = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
            if asked.returncode == 0 and asked.stdout:
                return Compiler(tuple(command), asked.stdout.splitlines()[0])
    return None


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
    ninja = _ninja()
    if ninja is not None:
        (folder / "build.ninja").write_text(_ninja_file(library.name, commands, link))
        _run([*ninja], folder)
    else:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda command: _run(command, folder), commands.values()))
        _run(link, folder)
    return folder / library.name


def _ninja() -> list[str] | None:
    if shutil.which("ninja"):
        return ["ninja"]
    if importlib.util.find_spec("ninja") is not None:
        return [sys.executable, "-m", "ninja"]
    return None


def _ninja_file(name: str, commands: dict[str, list[str]], link: list[str]) -> str:
    def quoted(command: list[str]) -> str:
        return shlex.join(command).replace("$", "$$")

    lines = ["rule run", "  command = $command", ""]
    for target, command in commands.items():
        lines += [f"build {target}: run", f"  command = {quoted(command)}", ""]
    lines += [f"build {name}: run {' '.join(commands)}", f"  command = {quoted(link)}", ""]
    return "\n".join(lines)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise CompileError(f"{shlex.join(command)}\n{done.stdout}")
