"""First-order MAML: the last micro-batch's gradient, after inner steps on those before it."""

from __future__ import annotations

from torch import Tensor

from gradalign.baselines.inner import InnerLoop, InnerMethod
from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Step


class FOMAML(InnerMethod):
    """Fills `.grad` with the gradient of the last micro-batch after k - 1 steps of SGD on the others, one each.

        theta_0 = theta,      theta_i = theta_{i-1} - inner_lr grad L_i(theta_{i-1})
        .grad = grad L_k(theta_{k-1})

    The derivative of theta_{k-1} by theta is taken as the identity. Averaged over all orders of the micro-batches

        gbar - (k - 1) inner_lr AvgGradInner + O(inner_lr^2),      AvgGradInner = mean over i != j of H_i g_j

    Only one micro-batch of k is in the leading term: its variance is that of a single micro-batch.

    Passes: k, one a micro-batch, each its base pass: buffers, random numbers and losses are those of the inner points. Copies
    over plain training: 1 (the backup; the sum of the inner gradients is let go before there is a gradient).

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
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 2017, arXiv:1703.03400.
        Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, arXiv:1803.02999 (this form and the series).
    """

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        return FOMAMLSchedule(step, total, self._inner_lr)


class FOMAMLSchedule(Schedule):
    """Inner gradients have a sum of their own, which the last inner point is the last to need."""

    def __init__(self, step: Step, total: Vector, inner_lr: float) -> None:
        super().__init__(step)
        self.total = total
        self.gradients: Vector = step.space.zeros()
        self.inner = InnerLoop(step, inner_lr)

    def visit(self, closure: Closure) -> Tensor:
        """The pass at the inner point; the last one's gradient, whole, is the step's."""
        step, before = self.step, self.num_visited
        self.num_visited += 1
        finite = self.inner.enter(self.gradients) if before else 1.0
        if self.num_visited < step.num:
            loss = self.inner.base_pass("FOMAML", closure, self.gradients)
        else:
            self.gradients.clear()  # makes room for the gradient
            loss = self.inner.base_pass("FOMAML", closure, self.total, finite * step.num)
        self.inner.leave()
        return loss

    def finish(self) -> dict[str, Tensor]:
        """The gradient of the last micro-batch is the step's."""
        self.step.close(self.total, None)
        return self.inner.found()
