"""The tasks by name."""

from __future__ import annotations

from benchmarks.quality.task import Task

TASKS: dict[str, Task] = {}
