"""Reptile: the way that a few steps of SGD take, as a gradient."""

from __future__ import annotations

from torch import Tensor

from gradalign.baselines.inner import InnerLoop, InnerMethod
from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Step


class Reptile(InnerMethod):
    """Fills `.grad` with the mean gradient along k steps of SGD, one a micro-batch.

        theta_0 = theta,      theta_i = theta_{i-1} - inner_lr grad L_i(theta_{i-1})
        .grad = (theta - theta_k) / (inner_lr k) = (1/k) sum_i grad L_i(theta_{i-1})

    The division by `inner_lr k` makes it the mean gradient to leading order, so that any optimizer can follow with its usual
    learning rate; averaged over all orders of the micro-batches the next order is

        gbar - (k - 1) / 2 inner_lr AvgGradInner + O(inner_lr^2),      AvgGradInner = mean over i != j of H_i g_j

    which is the gradient of `mean L - (k - 1) / 4 inner_lr * dot`: what GradAlign's dot maximises, in k passes, with a weight
    tied to `inner_lr`. The right-hand sum is what is computed, since a difference of low-precision parameters loses most of it.

    Passes: k, one a micro-batch, each its base pass: buffers, random numbers and losses are those of the inner points. Copies
    over plain training: 1 (the backup).

    Args:
        model: the module, or several, whose parameters are trained.
        inner_lr: learning rate of the inner steps [parameter^2 / loss].
        params: the parameters that inner steps move; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry.
        backend: what runs the kernels: "auto", "reference", "native" or "triton".

    Raises:
        ValueError: an `inner_lr` that is not above 0, a parameter that is not the model's, a backend that is not there.
        TypeError: an argument of the wrong type.

    References:
        Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, arXiv:1803.02999.

    Examples:
        >>> import torch, gradalign
        >>> model = torch.nn.Linear(3, 1)
        >>> reptile = gradalign.baselines.Reptile(model, inner_lr=0.01)
        >>> loss = reptile.backward(lambda x: model(x).square().mean(), gradalign.chunk(torch.randn(16, 3), 8))
        >>> reptile.stats.passes
        8
    """

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        return ReptileSchedule(step, total, self._inner_lr)


class ReptileSchedule(Schedule):
    """The sum of the gradients is both the way gone so far and what ends in `.grad`."""

    def __init__(self, step: Step, total: Vector, inner_lr: float) -> None:
        super().__init__(step)
        self.total = total
        self.inner = InnerLoop(step, inner_lr)

    def visit(self, closure: Closure) -> Tensor:
        """The pass at the inner point that the micro-batches before it led to."""
        if self.num_visited:
            self.inner.enter(self.total)
        loss = self.inner.base_pass("Reptile", closure, self.total)
        self.inner.leave()
        self.num_visited += 1
        return loss

    def finish(self) -> dict[str, Tensor]:
        """The sum is the gradient."""
        self.step.close(self.total, None)
        return self.inner.found()
