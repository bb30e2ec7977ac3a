"""How an arm fills `.grad`: the plain loop and gradalign, with the linear warm-up that both tasks use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gradalign

Loss = Callable[[Any], Tensor]  # of one micro-batch
Backward = Callable[[Loss, Sequence[Any]], Tensor]  # (loss_fn, micro_batches) -> the mean loss


def plain_backward(model: nn.Module) -> Backward:
    """The backward of a plain training loop: accumulate loss / k."""

    def backward(loss_fn: Loss, micro_batches: Sequence[Any]) -> Tensor:
        total = torch.zeros((), device=next(model.parameters()).device)
        for batch in micro_batches:
            loss = loss_fn(batch) / len(micro_batches)
            loss.backward()
            total += loss.detach()
        return total

    return backward


def aligned_backward(weight: float, warmup: int, **options: Any) -> Callable[[nn.Module], Backward]:
    """The backward of gradalign, whose weight rises linearly over `warmup` steps."""
    return lambda model: gradalign.GradAlign(model, weight=lambda step: weight * ramp(step, warmup), **options).backward


def ramp(step: int, warmup: int) -> float:
    """Linear warm-up: 1/warmup, 2/warmup, ..., 1, 1, ..."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0
