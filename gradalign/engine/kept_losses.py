"""The losses of a step, kept until its statistics are taken."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from gradalign.engine.space import no_grad


class KeptLosses:
    """Copies of the losses of a step's base passes, side by side in one tensor that is made before the first backward.

    A tensor of its own for each, made after a backward and held until the end of the step, would lie between the memory that
    this backward has freed and what the next one needs. glibc then may find no place for the largest gradient of a pass, and
    the process grows by it in every pass: a step of BERT-tiny then took the memory of its embedding from the system nine times
    instead of four.

    Args:
        num: k, how many there will be.
    """

    def __init__(self, num: int) -> None:
        self._num = num
        self._row: Tensor | None = None
        self._places: tuple[Tensor, ...] = ()
        self._used = 0

    @no_grad
    def keep(self, loss: Tensor) -> Tensor:
        """The value of a 0-dim loss, without its graph; loss_fn may keep the loss, and add to it in place."""
        if self._row is None:
            self._row = torch.empty(self._num, dtype=loss.dtype, device=loss.device)
            self._places = self._row.unbind()
        alike = loss.dtype == self._row.dtype and loss.device == self._row.device
        if not alike or self._used == self._num:
            return loss.clone()
        self._used += 1
        return self._places[self._used - 1].copy_(loss)

    def side_by_side(self, losses: Sequence[Tensor]) -> Tensor | None:
        """Losses as one tensor, where that is at hand: where they are all that were kept, in this order."""
        whole = len(losses) == self._used == self._num
        return self._row if whole and all(map(operator.is_, losses, self._places)) else None
