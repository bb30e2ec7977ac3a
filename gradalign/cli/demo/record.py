"""The record of a demo run: plain data for the JSON file."""

from __future__ import annotations

import datetime
from typing import Any

from gradalign._version import __version__
from gradalign.cli import machine

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy")


def run_record(settings: dict[str, Any], results: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Everything about a run, as it is written to the JSON file.

    Args:
        settings: of the task, as plain data; its name is one of them.
        results: of the task, as plain data.
        seconds: that the whole run took.
    """
    return {
        "gradalign": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": {"cpu": machine.cpu(), "gpus": machine.gpus(), "platform": machine.platform.platform()},
        "versions": machine.versions(*PACKAGES),
        "settings": settings,
        **results,
    }
