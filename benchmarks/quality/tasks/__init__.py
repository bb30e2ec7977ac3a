"""The tasks by name."""

from __future__ import annotations

from benchmarks.quality.task import Task
from benchmarks.quality.tasks import reviews, shortcut

TASKS: dict[str, Task] = {task.name: task for module in (shortcut, reviews) for task in module.TASKS}
