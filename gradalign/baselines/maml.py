"""MAML: the gradient through the inner steps, exact."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from gradalign.baselines.inner import WRITES, InnerMethod
from gradalign.baselines.stand_ins import StandIns
from gradalign.engine.devices import to_device
from gradalign.engine.displacement import no_writes
from gradalign.engine.double_backward import twice_differentiable
from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Step


class MAML(InnerMethod):
    """Fills `.grad` with the derivative by theta of the last micro-batch's loss after k - 1 steps of SGD on the others.

        theta_0 = theta,      theta_i = theta_{i-1} - inner_lr grad L_i(theta_{i-1})
        .grad = (I - inner_lr H_1(theta_0)) ... (I - inner_lr H_{k-1}(theta_{k-2})) grad L_k(theta_{k-1})

    Averaged over all orders of the micro-batches

        gbar - 2 (k - 1) inner_lr AvgGradInner + O(inner_lr^2),      AvgGradInner = mean over i != j of H_i g_j

    For small models: the graphs of all passes are kept until the last one has been differentiated, and every operation must be
    twice differentiable. Inner steps are taken with `torch.func.functional_call`; a loss_fn that holds parameters themselves,
    instead of asking its model for them, sees theta where it should see theta_i.

    Passes: k, one a micro-batch, each its base pass (and a second derivative for all but the last): buffers, random numbers and
    losses are those of the inner points.

    Args:
        model: the module, or several, whose parameters are trained.
        inner_lr: learning rate of the inner steps [parameter^2 / loss].
        params: the parameters that inner steps move; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry.
        backend: what runs the kernels, here only the norm of the gradient: the inner steps are part of autograd's graph.

    Raises:
        ValueError: an `inner_lr` that is not above 0, a parameter that is not the model's, a backend that is not there.
        TypeError: an argument of the wrong type.

    References:
        Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 2017, arXiv:1703.03400.
        Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms, 2018, arXiv:1803.02999 (the series).
    """

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        return MAMLSchedule(step, total, self._inner_lr, self._models.modules)


class MAMLSchedule(Schedule):
    """theta_i is a function of theta, and stays one until the last backward."""

    reuses_graphs = True
    several_ranks = False

    def __init__(self, step: Step, total: Vector, inner_lr: float, models: Iterable[nn.Module]) -> None:
        super().__init__(step)
        self.total = total
        self.scale = -inner_lr * step.own_scale
        self.stand_ins = step.displacement = StandIns(step.space, models)
        self.point: list[Tensor] = list(step.space.params)

    def visit(self, closure: Closure) -> Tensor:
        """An inner step, or the last pass and the backward through all inner steps."""
        self.num_visited += 1
        if self.num_visited == self.step.num:
            return self.last(closure)
        step, point = self.step, self.point
        with self.no_writes():
            loss, graph = step.passes.differentiable(
                lambda: self.stand_ins.call(closure, point), step.loss_scale, point, name="MAML"
            )
        self.point = [
            p if g is None or not moves else p + (g * to_device(self.scale, p.device)).to(p.dtype)
            for p, g, moves in zip(point, graph, self.moves(), strict=True)
        ]
        return loss

    def last(self, closure: Closure) -> Tensor:
        """Leaves the step's gradient in `.grad`."""
        with self.no_writes(), twice_differentiable("MAML"):
            return self.step.passes.base_pass(
                lambda: self.stand_ins.call(closure, self.point), self.total, self.step.num
            )

    def no_writes(self) -> AbstractContextManager[None]:
        """Of the tensors at an inner point; at theta a forward may write."""
        return no_writes(self.point, "MAML", WRITES) if self.num_visited > 1 else nullcontext()

    def moves(self) -> list[bool]:
        """Whether inner steps move a parameter, for each."""
        measured = set(self.step.space.measured)
        return [i in measured for i in self.step.space.everywhere]

    def finish(self) -> dict[str, Tensor]:
        """The gradient of the last micro-batch is the step's."""
        self.point = []
        self.step.close(self.total, None)
        return {}
