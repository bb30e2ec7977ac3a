"""What a contender is given: a model, its loss, and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.steps.workloads import LoadedWorkload

LR = 1e-6  # small: parameters stay where they began, so that every step of every contender does the same


class Stepper(Protocol):
    """A contender made for a task."""

    def step(self, micro_batches: list[Any]) -> Any:
        """One optimizer step on the micro-batches, gradients cleared at its end."""


class Task:
    """A loaded workload as contenders see it; counts in `num_losses` how often its loss is evaluated.

    Args:
        loaded: model, loss and micro-batches.
    """

    def __init__(self, loaded: LoadedWorkload) -> None:
        self.model: nn.Module = loaded.model
        self.num_losses = 0
        self._loss = loaded.loss

    def loss_fn(self, micro_batch: Any) -> Tensor:
        """The scalar loss of one micro-batch."""
        self.num_losses += 1
        return self._loss(self.model, micro_batch)

    def adamw(self, params: Iterable[Any] | None = None) -> torch.optim.Optimizer:
        """`torch.optim.AdamW`, fused: torch's fastest. Its state is allocated now, so that peak memory includes it."""
        params = self.model.parameters() if params is None else params
        optimizer = torch.optim.AdamW(params, lr=LR, fused=True)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()
        return optimizer


class GradientFiller:
    """A method that fills `.grad` in place of `loss.backward()`, and AdamW after it.

    Args:
        task: the model, its loss and its optimizer.
        method: has `backward(loss_fn, micro_batches)`.
    """

    def __init__(self, task: Task, method: Any) -> None:
        self._task, self._method, self._optimizer = task, method, task.adamw()

    @property
    def passes(self) -> int | None:
        """Passes of the last step by the method's own count."""
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
