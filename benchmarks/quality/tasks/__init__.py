"""The tasks by name."""

from __future__ import annotations

from benchmarks.quality.task import Task
from benchmarks.quality.tasks import (
    clean,
    label_noise,
    reviews,
    reviews_bert,
    rotated_mnist,
    shortcut,
    sinusoids,
    sprites,
    vader,
)

MODULES = (shortcut, reviews, reviews_bert, vader, rotated_mnist, sprites, label_noise, clean, sinusoids)
TASKS: dict[str, Task] = {task.name: task for module in MODULES for task in module.TASKS}
