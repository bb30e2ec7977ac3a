"""Sharpness-aware minimization over accumulated micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.backends.dispatch import BackendName
from gradalign.engine import validation
from gradalign.engine.method import Method, MethodOptions
from gradalign.engine.passes import Closure
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import Vector
from gradalign.engine.step import Settings, Step
from gradalign.objectives import objective


class SAM(Method):
    """Fills `.grad` with the mean gradient a length `rho` uphill.

        .grad = gbar(theta + rho gbar / ||gbar||),      gbar = (1/k) sum_i g_i

    With `per_micro_batch` each micro-batch goes up its own hill (m-SAM, m the size of a micro-batch):

        .grad = (1/k) sum_i g_i(theta + rho g_i / ||g_i||)

    Passes: 2k. The second pass of a micro-batch repeats the random numbers (dropout masks) of its first, starts from the same
    buffers and leaves no trace in them: buffers, random stream and returned losses are those of the first passes. Copies over
    plain training: 1 (the backup; the first gradient is let go at the displaced point), with `per_micro_batch` 2.

    Args:
        model: the module, or several, whose parameters are trained and whose buffers second passes leave alone.
        rho: length of the way up [parameter]; Foret et al. use 0.05.
        per_micro_batch: see above. `accumulate` needs it: the mean gradient is only known after the last micro-batch.
        params: the parameters that are displaced, and whose gradient is normalised; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry.
        backend: what runs the kernels: "auto", "reference", "native" or "triton".

    Raises:
        ValueError: a `rho` that is not above 0, a parameter that is not the model's, a backend that is not there.
        TypeError: an argument of the wrong type.

    References:
        Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021,
        arXiv:2010.01412.

    Examples:
        >>> import torch, gradalign
        >>> model = torch.nn.Linear(3, 1)
        >>> sam = gradalign.baselines.SAM(model, rho=0.05)
        >>> loss = sam.backward(lambda x: model(x).square().mean(), gradalign.chunk(torch.randn(16, 3), 4))
        >>> sam.stats.passes
        8
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        rho: float = 0.05,
        *,
        per_micro_batch: bool = False,
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        zeroed_grads: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        radius = validation.positive("rho", rho, "a length, in the units of the parameters")
        settings = Settings(objective("dot"), normalize="direction", central=False, radius=radius, telemetry=False)
        self._per_micro_batch = per_micro_batch
        super().__init__(model, settings, MethodOptions(params, scaler, zeroed_grads, backend))

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        return Separate(step, total) if self._per_micro_batch else SAMSchedule(step, total)


class _Ascent(Schedule):
    """The way up and the second passes."""

    def __init__(self, step: Step, total: Vector) -> None:
        super().__init__(step)
        self.total = total

    def climb(self, closures: Sequence[Closure], gradient: Vector, scale: Tensor) -> None:
        """Second passes a length rho along `scale gradient`, which is let go."""
        step = self.step
        sums = step.space.norm_dot(gradient, over=step.space.measured)
        step.displace(step.aim(sums, scale), gradient)
        gradient.clear()
        for i, closure in enumerate(closures, 1):
            step.passes.displaced_pass(closure, self.total, step.space.one(), more=i < len(closures))
        step.displacement.restore()

    def finish(self) -> dict[str, Tensor]:
        """The sum of the second gradients is the gradient."""
        self.step.close(self.total, None)
        return {}


class SAMSchedule(_Ascent):
    """All micro-batches go up along their mean gradient; second passes are chained in random numbers and buffers."""

    needs_all = True

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """All first passes, then all second passes."""
        passes, gradient = self.step.passes, self.step.space.zeros()
        start = passes.replay_state()
        losses = [passes.base_pass(c, gradient, more=i < len(closures)) for i, c in enumerate(closures, 1)]
        end = passes.replay_state()
        end.leave_unused([start])
        start.put_back()
        self.climb(closures, gradient, self.step.own_scale / self.step.num)
        end.put_back()
        return losses


class Separate(_Ascent):
    """Every micro-batch goes up along its own gradient."""

    def visit(self, closure: Closure) -> Tensor:
        """First pass, then second pass."""
        passes = self.step.passes
        start = passes.replay_state()
        loss, gradient = passes.isolated_pass(closure)
        end = passes.replay_state()
        end.leave_unused([start])
        start.put_back()
        self.climb([closure], gradient, self.step.own_scale)
        end.put_back()
        return loss
