"""Where a row was measured and with what: device, machine, versions, commit, seed, date."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import Any

import torch

import gradalign
from gradalign._version import __version__
from gradalign.cli import machine

PACKAGES = ("torch", "triton", "transformers", "pytorch_optimizer", "numpy")


def provenance(device: str, seed: int) -> dict[str, Any]:
    """What every row carries, without its date."""
    cpu = machine.cpu()
    return {
        "device": device,
        "machine": {
            "cpu": cpu["model"],
            "cores": cpu["cores"],
            "threads": cpu["threads"],
            "instruction_set": cpu["instruction_set"],
            "gpus": machine.gpus() if device == "cuda" else [],
        },
        "versions": {"gradalign": __version__, "cuda": torch.version.cuda, **machine.versions(*PACKAGES)},
        "commit": commit(),
        "seed": seed,
    }


def commit() -> str | None:
    """The commit of the source tree, with a + where files differ from it; None outside of one."""
    root = Path(gradalign.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "gradalign", "csrc", "kernels", "benchmarks/*.py")
        return head + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def date() -> str:
    """Now, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
