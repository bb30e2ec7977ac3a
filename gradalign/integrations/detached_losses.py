"""A warning where no loss of a step moves with the parameters: its value comes from what is detached."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradalign.telemetry import AlignmentStats

STEPS = 8  # with the term are looked at until one tells; micro-batches without an advantage do not
LEAST_COSINE = 0.5  # of the displacement: one that the parameters cannot represent moves no loss
LEAST_ULPS = 1024  # of the loss, by which it would change along its gradient
PRECISE = (torch.float32, torch.float64)


@dataclass
class Losses:
    """Those of the passes of one micro-batch, detached.

    Attributes:
        base: of its base pass.
        beside: of its displaced passes; one at theta that is repeated may be among them.
    """

    base: Tensor | None = None
    beside: list[Tensor] = field(default_factory=list)

    def note(self, loss: Tensor, displaced: bool) -> None:
        """One more pass."""
        if displaced:
            self.beside.append(loss.detach())
        else:
            self.base = loss.detach()


class DetachedLosses:
    """Compares losses of the first steps with the term: one read from the device a step, none after a step that tells."""

    def __init__(self) -> None:
        self._left = STEPS
        self._noted: list[Losses] = []

    def begin(self) -> Losses:
        """Where the losses of the next micro-batch are noted."""
        losses = Losses()
        if self._left:
            self._noted.append(losses)
        return losses

    def forget(self) -> None:
        """The step was left."""
        self._noted = []

    def judge(self, stats: AlignmentStats, told: bool = False) -> None:
        """A step is complete.

        Args:
            stats: of the step.
            told: whether the aligner has warned of the loss by itself, from one micro-batch of its first step.
        """
        noted, self._noted = self._noted, []
        if told:
            self._left = 0
            return
        pairs = [(losses.base, x) for losses in noted if losses.base is not None for x in losses.beside]
        if (
            stats.radius is None
            or stats.grad_norm is None
            or not pairs
            or any(base.dtype not in PRECISE for base, _ in pairs)
        ):
            return
        self._left -= 1
        base, beside = (torch.stack([x.double().sum() for x in column]).tolist() for column in zip(*pairs, strict=True))
        if base != beside:
            self._left = 0
        elif _would_move(stats, float(stats.grad_norm) * stats.radius, max(map(abs, base)), pairs[0][0].dtype):
            self._left = 0
            warnings.warn(
                "expected losses that move with the parameters; got the same to the last bit in all displaced passes of a "
                "step, as where the value comes from what is detached: policy gradients, GRPO or RLOO without old "
                "log-probabilities; align/dot, which the estimator split takes from losses, is then 0, and telemetry=True "
                "measures it; the term lacks a part of the Hessian: docs/trainers.md, Losses whose value is detached",
                UserWarning,
                stacklevel=2,
            )


def _would_move(stats: AlignmentStats, change: float, largest: float, dtype: torch.dtype) -> bool:
    """Whether a loss of this size shows such a change beside its rounding; not where all are 0, as without an advantage."""
    cosine = 1.0 if stats.displacement_cosine is None else float(stats.displacement_cosine)
    return largest > 0 and cosine > LEAST_COSINE and change > LEAST_ULPS * torch.finfo(dtype).eps * largest
