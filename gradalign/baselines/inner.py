"""What Reptile, FOMAML and MAML share: an inner loop of plain SGD from theta, one step a micro-batch."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.backends.dispatch import BackendName
from gradalign.backends.reference_scalars import cosine
from gradalign.engine import validation
from gradalign.engine.displacement import no_writes
from gradalign.engine.method import Method, MethodOptions
from gradalign.engine.passes import Closure
from gradalign.engine.space import Vector
from gradalign.engine.step import Settings, Step
from gradalign.objectives import objective

WRITES = 'its passes are at inner points, whose writes are undone; use SAM, or GradAlign with estimator "split"'
UNIT = "a learning rate: parameter^2 / loss"

# Nothing is displaced along an agreement here: of these settings only "no telemetry" is read.
SETTINGS = Settings(objective("dot"), normalize="direction", central=False, radius=None, telemetry=False)


class InnerMethod(Method):
    """A method that is told nothing but the learning rate of its inner loop; each says what its arguments mean to it."""

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        inner_lr: float,
        *,
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        zeroed_grads: bool = False,
        backend: BackendName = "auto",
    ) -> None:
        self._inner_lr = validation.positive("inner_lr", inner_lr, UNIT)
        super().__init__(model, SETTINGS, MethodOptions(params, scaler, zeroed_grads, backend))


class InnerLoop:
    """theta_i = theta - inner_lr (g_1 + ... + g_i), g_j the gradient of micro-batch j at theta_{j-1}.

    Every point is reached from theta in one displacement along the sum of the gradients so far, so that no rounding of the
    parameters adds up, and left for theta again, bit for bit. A sum that is not finite leads nowhere: passes see theta itself.
    """

    def __init__(self, step: Step, inner_lr: float) -> None:
        self._step = step
        self._inner_lr = inner_lr
        self._cosine: Tensor | None = None

    def enter(self, gradients: Vector) -> Tensor:
        """Parameters to the inner point.

        Args:
            gradients: the sum of the gradients so far, as passes leave it.

        Returns:
            1, or NaN where the sum is not finite: what makes a gradient that does not contain the sum tell of it.
        """
        step = self._step
        finite = step.space.norm_dot(gradients)[0].isfinite()
        scale = torch.where(finite, -self._inner_lr * step.own_scale, 0.0)
        self._cosine = cosine(*step.displacement.displace(gradients, scale).unbind())
        return torch.where(finite, step.space.one(), torch.nan)

    def base_pass(self, name: str, closure: Closure, into: Vector, ratio: float | Tensor = 1.0) -> Tensor:
        """A base pass where the parameters are; its forward may write them at theta only."""
        step = self._step
        away = step.displacement.active
        with no_writes(step.space.tensors, name, WRITES) if away else nullcontext():
            return step.passes.base_pass(closure, into, ratio)

    def leave(self) -> None:
        """Parameters back to theta."""
        self._step.displacement.restore()

    def found(self) -> dict[str, Tensor]:
        """The fields of `AlignmentStats` that only the inner loop knows: how much of the whole way the dtype represents."""
        return {} if self._cosine is None else {"displacement_cosine": self._cosine}
