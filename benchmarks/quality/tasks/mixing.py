"""Micro-batches of labelled sources, or of the same samples without regard to their source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # inputs, labels


def as_micro_batches(train: Sequence[Pair], size: int | None, seed: int, mixed: bool) -> Callable[[int], list[Pair]]:
    """step -> one micro-batch a source.

    Args:
        train: the samples of each source.
        size: of a micro-batch; None: all samples of the source, in every step.
        seed: of the draws.
        mixed: the same samples of a step are shuffled, then cut into micro-batches of the same size.
    """
    if size is None:
        fixed = _shuffled(train, torch.Generator().manual_seed(seed)) if mixed else list(train)
        return lambda step: fixed

    def drawn(step: int) -> list[Pair]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        batches = []
        for inputs, labels in train:
            rows = torch.randint(len(labels), (size,), generator=generator)
            batches.append((inputs[rows], labels[rows]))
        return _shuffled(batches, generator) if mixed else batches

    return drawn


def _shuffled(batches: Sequence[Pair], generator: torch.Generator) -> list[Pair]:
    """The same samples, dealt at random to as many micro-batches of equal size."""
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = torch.randperm(len(labels), generator=generator)
    return list(zip(inputs[order].chunk(len(batches)), labels[order].chunk(len(batches)), strict=True))
