"""Paired training of all arms of one seed: from the same weights, on the same texts, one micro-batch for each site.

The arms alternate step by step, so that what slows the machine slows all of them and their times can be compared.
"""

from __future__ import annotations

import functools
import time
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradalign.cli.demo.equal_time import cost_factor, extra_steps
from gradalign.cli.demo.sites.data import Pair, SeedData
from gradalign.cli.demo.sites.methods import LONGER, METHODS, Method
from gradalign.cli.demo.sites.settings import Settings

POINTS = 20  # of an accuracy curve


class Progress(Protocol):
    """What training reports its progress to."""

    def advance(self) -> None:
        """One step of all arms is done."""


class Run:
    """One arm in training: a logistic regression that starts from 0, with SGD.

    Args:
        method: fills `.grad`.
        data: of the seed.
        settings: learning rate and warm-up.
    """

    def __init__(self, method: Method, data: SeedData, settings: Settings) -> None:
        self.method, self._data = method, data
        self._model = nn.Linear(data.test[0].shape[1], 1)
        nn.init.zeros_(self._model.weight)
        nn.init.zeros_(self._model.bias)
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=settings.lr)
        self._backward = method.make(self._model, settings.warmup)
        self._order = torch.Generator().manual_seed(data.seed)
        self.seconds: list[float] = []
        self.accuracies: list[tuple[int, float]] = []

    def step(self) -> None:
        """One optimizer step, timed by the processor.

        The sites come in another order in each step, the same for all arms: Reptile follows those that come last.
        """
        dealt = self._data.mixed if self.method.mixed else self._data.train
        micro_batches = [dealt[i] for i in torch.randperm(len(dealt), generator=self._order).tolist()]
        start = time.process_time()
        self._backward(functools.partial(mean_loss, self._model), micro_batches)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.seconds.append(time.process_time() - start)

    def evaluate(self) -> None:
        """Adds the accuracy on the test to the curve."""
        self.accuracies.append((len(self.seconds), float(self._right(self._data.test).mean())))

    def result(self) -> dict[str, Any]:
        """What is known of the arm at this step, as plain data; see `record.summary`."""
        right = self._right(self._data.test)
        agree = (self._data.points == self._data.test[1][:, None]).sum(1)
        return {
            "steps": len(self.seconds),
            "seconds": list(self.seconds),
            "accuracies": list(self.accuracies),
            "test": self.accuracies[-1][1],
            "own": float(self._right(self._data.own).mean()),
            "by_pointing_right": [float(right[agree == num].mean()) for num in range(self._data.points.shape[1] + 1)],
        }

    def _right(self, pair: Pair) -> Tensor:
        """1 where the sign of the logit is that of the label; NaN, all of it, where training diverged."""
        with torch.no_grad():
            logits = self._model(pair[0]).squeeze(1)
        right = ((logits > 0) == (pair[1] > 0.5)).double()
        return right if bool(logits.isfinite().all()) else right.fill_(float("nan"))


def mean_loss(model: nn.Module, micro_batch: Pair) -> Tensor:
    """The binary cross-entropy of one logit, 0-dim."""
    features, labels = micro_batch
    return nn.functional.binary_cross_entropy_with_logits(model(features).squeeze(1), labels)


def train_seed(settings: Settings, data: SeedData, progress: Progress) -> dict[str, Any]:
    """Trains all arms, then plain SGD for as long as the dearest of them took.

    Returns:
        `Run.result` by the name of the arm, each with its `cost_factor`.
    """
    runs = [Run(method, data, settings) for method in METHODS]
    every = max(1, settings.steps // POINTS)
    for step in range(1, settings.steps + 1):
        for run in runs if step % 2 else reversed(runs):
            run.step()
            if step % every == 0 or step == settings.steps:
                run.evaluate()
        progress.advance()
    plain = runs[0]
    arms = {run.method.name: {**run.result(), "cost_factor": cost_factor(plain.seconds, run.seconds)} for run in runs}
    dearest = max(arm["cost_factor"] for arm in arms.values())
    further = extra_steps(settings.steps, dearest)
    for step in range(1, further + 1):
        plain.step()
        if step % every == 0 or step == further:
            plain.evaluate()
    arms[LONGER] = {**plain.result(), "cost_factor": dearest}
    return arms
