"""What a method is given: a model, its loss, and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.steps.works import Loaded

LR = 1e-6  # small: every method stays where it began, so that all of them go on doing the same work


class Stepper(Protocol):
    """A method at work."""

    def step(self, micro_batches: list[Any]) -> Any:
        """One optimizer step on the micro-batches, gradients cleared at its end."""


class Task:
    """A loaded work as methods see it; counts how often its loss is evaluated.

    Args:
        loaded: the work.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.model: nn.Module = loaded.model
        self.num_losses = 0
        self._loss = loaded.loss

    def loss_fn(self, micro_batch: Any) -> Tensor:
        """The scalar loss of one micro-batch."""
        self.num_losses += 1
        return self._loss(self.model, micro_batch)

    def adamw(self, params: Iterable[Any] | None = None) -> torch.optim.Optimizer:
        """`torch.optim.AdamW`, fused: the fastest torch has. Its state is there from the start, for peak memory's sake."""
        params = self.model.parameters() if params is None else params
        optimizer = torch.optim.AdamW(params, lr=LR, fused=True)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()
        return optimizer


class Filling:
    """A method that fills `.grad` in place of `loss.backward()`, and AdamW after it.

    Args:
        task: the model, its loss and its optimizer.
        method: has `backward(loss_fn, micro_batches)`.
    """

    def __init__(self, task: Task, method: Any) -> None:
        self._task, self._method, self._optimizer = task, method, task.adamw()

    @property
    def passes(self) -> int | None:
        """What the method itself says of its last step."""
        return None if self._method.stats is None else self._method.stats.passes

    def step(self, micro_batches: list[Any]) -> None:
        """One optimizer step."""
        self._method.backward(self._task.loss_fn, micro_batches)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Plain:
    """Gradient accumulation and AdamW: what everything is compared with."""

    def __init__(self, task: Task) -> None:
        self._task, self._optimizer = task, task.adamw()

    def step(self, micro_batches: list[Any]) -> None:
        """One optimizer step."""
        accumulate(self._task.loss_fn, micro_batches)
        self._optimizer.step()
        self._optimizer.zero_grad()


def accumulate(loss_fn: Callable[[Any], Tensor], micro_batches: list[Any]) -> Tensor:
    """The plain loop: `.grad` <- `.grad` + gradient of the mean loss, which is returned detached."""
    total = None
    for batch in micro_batches:
        loss = loss_fn(batch) / len(micro_batches)
        loss.backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total
