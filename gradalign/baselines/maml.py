"""MAML: the gradient through the inner steps, exact."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction, _Holder

from gradalign.baselines.inner import WRITES, InnerMethod
from gradalign.baselines.stand_ins import StandIns
from gradalign.engine import losses
from gradalign.engine.devices import to_device
from gradalign.engine.displacement import no_writes
from gradalign.engine.double_backward import twice_differentiable
from gradalign.engine.graph import nodes
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
    twice differentiable; checkpoints are refused, which would compute again at theta. Inner steps are taken with
    `torch.func.functional_call`; a loss_fn that holds parameters themselves, instead of asking its model for them, sees theta
    where it should see theta_i.

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
                lambda: self.call(closure, point), step.loss_scale, point, name="MAML"
            )
        self.point = [
            p if g is None or not moves else p + (g * to_device(self.scale, p.device)).to(p.dtype)
            for p, g, moves in zip(point, graph, self.moves(), strict=True)
        ]
        return loss

    def last(self, closure: Closure) -> Tensor:
        """Leaves the step's gradient in `.grad`."""
        with self.no_writes(), twice_differentiable("MAML"):
            return self.step.passes.base_pass(lambda: self.call(closure, self.point), self.total, self.step.num)

    def call(self, closure: Closure, point: list[Tensor]) -> Any:
        """What the closure returns at a point, where no part of it is to be computed again later."""
        result = self.stand_ins.call(closure, point)
        loss = losses.loss_and_aux(result)[0] if self.step.passes.has_aux else result
        if isinstance(loss, Tensor):
            no_checkpoint(loss)
        return result

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


def no_checkpoint(loss: Tensor) -> None:
    """Refuse a checkpoint on the way of a loss: its backward computes a part again, after the modules got theta back.

    A checkpoint with use_reentrant=False leaves a holder in the place of every tensor that an operation saves.

    Raises:
        RuntimeError: there is one.
    """
    names: dict[type, list[str]] = {}  # what nodes of a type save
    for node in nodes([loss]):
        kind = type(node)
        if kind not in names:
            names[kind] = [name for name in dir(node) if name.startswith("_raw_saved_")]
        saved = [_saved(node, name) for name in names[kind]]
        each = [raw for found in saved for raw in (found if isinstance(found, (tuple, list)) else (found,))]
        reentrant = getattr(kind, "_forward_cls", None) is CheckpointFunction
        if reentrant or any(isinstance(getattr(raw, "data", None), _Holder) for raw in each):
            raise RuntimeError(
                "MAML: expected a loss_fn without checkpoints; got one with torch.utils.checkpoint: its backward runs after "
                "the modules got their parameters back, and would compute a part again at theta instead of the inner point; "
                "switch checkpointing off, or use FOMAML or Reptile"
            )


def _saved(node: Any, name: str) -> Any:
    """What a node saved, None where it was freed: the backward says so in torch's words."""
    try:
        return getattr(node, name)
    except RuntimeError:
        return None
