"""The command line's error, which the shared data and models raise too; the only place that imports it."""

from __future__ import annotations

from gradalign.cli.errors import CommandError

__all__ = ["CommandError"]
