"""The tasks by name."""

from __future__ import annotations

from benchmarks.quality.task import Task
from benchmarks.quality.tasks import clean, label_noise, rotated_mnist, sinusoids, sprites, vader

TASKS: dict[str, Task] = {
    task.name: task
    for module in (vader, rotated_mnist, sprites, label_noise, clean, sinusoids)
    for task in module.TASKS
}
