"""The linear shortcut: one feature that is right everywhere, and for each source one that is right there alone.

Every feature is the label or its negative: x_0 is right with probability 0.93 in all sources and in the test, x_s (s = 1..S)
with probability 0.99 in source s and 0.5 elsewhere. A logistic regression on these S + 1 numbers is trained on 1,000 samples of
each source, one micro-batch a source.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.quality.task import Batch, Problem, Task
from benchmarks.quality.tasks.mixing import as_micro_batches

STABLE, SHORTCUT, COIN = 0.93, 0.99, 0.5
PER_SOURCE = 1000
HELD_OUT = 4000
HIDDEN = 32


class Data(NamedTuple):
    """Pairs (features, labels); `train` and `source_validation` one for each source."""

    train: list[tuple[Tensor, Tensor]]
    source_validation: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def sample(num: int, sources: int, source: int | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(num, sources + 1) of +-1 and the labels, 0 or 1; `source` None: the test."""
    right = torch.tensor([STABLE] + [SHORTCUT if s == source else COIN for s in range(sources)])
    labels = torch.randint(2, (num,), generator=generator).float()
    agrees = torch.rand(num, sources + 1, generator=generator) < right
    return torch.where(agrees, 1.0, -1.0) * (2 * labels - 1)[:, None], labels


@lru_cache(maxsize=2)
def data(sources: int, seed: int) -> Data:
    """All samples of a seed."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(sample, sources=sources, generator=generator)
    train = [draw(PER_SOURCE, source=s) for s in range(sources)]
    held_out = [draw(HELD_OUT // sources, source=s) for s in range(sources)]
    return Data(train, together(held_out), draw(HELD_OUT, source=None), draw(HELD_OUT, source=None))


def together(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All of them as one."""
    features, labels = zip(*pairs, strict=True)
    return torch.cat(features), torch.cat(labels)


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """The binary cross-entropy of one logit."""
    features, labels = batch
    return nn.functional.binary_cross_entropy_with_logits(model(features).squeeze(1), labels)


def accuracy(model: nn.Module, pair: tuple[Tensor, Tensor]) -> float:
    """Of the sign of the logit."""
    with torch.no_grad():
        return float(((model(pair[0]).squeeze(1) > 0) == (pair[1] > 0.5)).double().mean())


def classifier(width: int, hidden: int) -> nn.Module:
    """A logistic regression that starts from 0, or one hidden layer of that many units."""
    if hidden:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
    model = nn.Linear(width, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def problem(sources: int, batch: int | None, hidden: bool, seed: int, mixed: bool) -> Problem:
    """One seed.

    Args:
        sources: S.
        batch: samples of a micro-batch; None: all of a source.
        hidden: whether the model has a hidden layer.
        seed: of samples, weights and order.
        mixed: whether micro-batches mix the sources.
    """
    found = data(sources, seed)
    torch.manual_seed(seed)
    width = sources + 1
    return Problem(
        classifier(width, HIDDEN if hidden else 0),
        loss_fn,
        as_micro_batches(found.train, batch, seed, mixed),
        tuple(f"source {s + 1}" for s in range(sources)),
        lambda model: {
            name: accuracy(model, getattr(found, name)) for name in ("validation", "source_validation", "test")
        },
    )


def task(sources: int, batch: int | None = None, hidden: bool = False) -> Task:
    """The task of that many sources."""
    kind = "one hidden layer" if hidden else "logistic regression"
    size = f"mini-batches of {batch} a source" if batch else "full batch"
    return Task(
        f"shortcut-{sources}{'-mlp' if hidden else ''}{'-mini' if batch else ''}",
        f"linear shortcut, {sources} sources, {kind}, {size}",
        partial(problem, sources, batch, hidden),
        has_sources=True,
        optimizer="sgd",
        lrs=(0.03, 0.6),
        steps=30,
        evaluate_every=3,
        ramp=0,
    )


TASKS = (task(2), task(3), task(4), task(2, 32), task(2, None, True))
