"""What a task is: for every seed a model, micro-batches with or without regard to their sources, and three metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Batch = Any  # one micro-batch, whatever the loss_fn takes

TUNING_SEEDS = (1000, 1001, 1002)  # settings are chosen on these; never reported
METRICS = ("validation", "source_validation", "test")  # every evaluation has these; a task may add some of its own


@dataclass(frozen=True)
class Problem:
    """What one seed of a task gives; every arm of that seed gets the same.

    Attributes:
        model: with its starting weights, seeded.
        loss_fn: (model, micro-batch) -> the mean loss.
        micro_batches: step -> the micro-batches of that step; a function of seed and step alone.
        sources: the label of each micro-batch of a step, or None.
        evaluate: model -> metrics, all of them the higher the better: "validation" on held-out data of the distribution that is
            tested, "source_validation" on held-out data of the distribution that is trained on, "test" the figure reported; a
            fraction for an accuracy, minus the squared error for a regression. Draws no random numbers and leaves the model as
            it was.
    """

    model: nn.Module
    loss_fn: Callable[[nn.Module, Batch], Tensor]
    micro_batches: Callable[[int], list[Batch]]
    sources: tuple[str, ...] | None
    evaluate: Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """A situation to compare the arms in.

    Attributes:
        name: on the command line and of the file with its rows.
        title: one line for tables.
        problem: (seed, mixed) -> Problem; `mixed` deals the same samples to micro-batches without regard to their source.
        has_sources: whether micro-batches have sources, so that `mixed` makes a difference.
        optimizer: what follows the gradient.
        lrs: the lowest and the highest that is tried.
        steps: of plain training.
        evaluate_every: steps between two evaluations.
        ramp: steps over which the weight of the term rises linearly.
        seeds: reported, from 0.
        replicas: whether many runs can be trained at once (`benchmarks.quality.replicas`): no random numbers in the loss, no
            buffers in the model, batches that are tensors of one shape in all seeds.
    """

    name: str
    title: str
    problem: Callable[[int, bool], Problem]
    has_sources: bool
    optimizer: Literal["sgd", "adamw"]
    lrs: tuple[float, float]
    steps: int
    evaluate_every: int
    ramp: int
    seeds: int = 20
    replicas: bool = True
