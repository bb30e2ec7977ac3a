"""Optimizers of `pytorch_optimizer` as users of gradient accumulation would call them; installed by the extra `bench`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.errors import CommandError
from benchmarks.steps.task import LR, Task, accumulate

RHO = 0.05
LOOKSAM_PERIOD = 5  # a full step in five, as its authors use (Liu et al. 2022, arXiv:2203.02714)


def _installed() -> Any:
    try:
        return importlib.import_module("pytorch_optimizer")
    except ImportError as error:
        raise CommandError(f"expected pytorch_optimizer; got {error}; pip install pytorch_optimizer") from error


class TwoSteps:
    """SAM and LookSAM: gradients first, then `step(closure)` with a closure that computes them again.

    Args:
        task: model, loss, AdamW.
        name: of the class.
        period: LookSAM displaces in one step of these; in the others the first gradients would be thrown away, so that they
            are not computed.
        options: of the class.
    """

    def __init__(self, task: Task, name: str, period: int = 1, **options: Any) -> None:
        kind = getattr(_installed(), name)
        self._task, self._period, self._num_steps = task, period, 0
        self._optimizer = kind(list(task.model.parameters()), lambda groups, **_: task.adamw(groups), **options)

    def step(self, micro_batches: list[Any]) -> None:
        """One optimizer step."""

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            return accumulate(self._task.loss_fn, micro_batches)

        if self._num_steps % self._period == 0:
            closure()
        self._optimizer.step(closure)
        self._optimizer.zero_grad()
        self._num_steps += 1


class WithGap:
    """GSAM: `step(closure)` evaluates the closure twice and decomposes the first gradient."""

    def __init__(self, task: Task) -> None:
        package = _installed()
        self._task, self._base = task, task.adamw()
        schedule = torch.optim.lr_scheduler.ConstantLR(self._base, factor=1.0)
        rho = package.ProportionScheduler(schedule, max_lr=LR, max_value=RHO, min_value=RHO)
        self._optimizer = package.GSAM(task.model.parameters(), self._base, task.model, rho)

    def step(self, micro_batches: list[Any]) -> None:
        """One optimizer step."""

        def closure() -> tuple[None, Tensor]:
            self._base.zero_grad()
            with torch.enable_grad():
                return None, accumulate(self._task.loss_fn, micro_batches)

        self._optimizer.step(closure)
        self._base.zero_grad()


MAKERS: dict[str, Callable[[Task], Any]] = {
    "pytorch_optimizer SAM": lambda task: TwoSteps(task, "SAM", rho=RHO),
    "pytorch_optimizer LookSAM": lambda task: TwoSteps(task, "LookSAM", LOOKSAM_PERIOD, rho=RHO, k=LOOKSAM_PERIOD),
    "pytorch_optimizer GSAM": WithGap,
}
