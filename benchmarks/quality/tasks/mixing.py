"""Micro-batches of labelled sources, or of the same samples without regard to their source."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.quality.sampling import Samples, deal

Pair = tuple[Tensor, Tensor]  # inputs, labels


def as_micro_batches(train: Sequence[Pair], size: int | None, seed: int, mixed: bool) -> Callable[[int], list[Samples]]:
    """step -> one micro-batch a source.

    Args:
        train: the samples of each source.
        size: of a micro-batch; None: all samples of the source, in every step.
        seed: of the draws.
        mixed: the same samples of a step are shuffled, then cut into micro-batches of the same size.
    """
    sources = [Samples(*pair) for pair in train]
    if size is None:
        fixed = deal(sources, torch.Generator().manual_seed(seed)) if mixed else sources
        return lambda step: fixed

    def drawn(step: int) -> list[Samples]:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        batches = []
        for samples in sources:
            batches.append(samples.rows(torch.randint(len(samples.targets), (size,), generator=generator)))
        return deal(batches, generator) if mixed else batches

    return drawn
