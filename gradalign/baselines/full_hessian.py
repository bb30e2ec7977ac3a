"""The gradient of A with every Hessian written out: what nobody should do, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.baselines.double_backward import DoubleBackward
from gradalign.engine import validation
from gradalign.engine.space import Vector
from gradalign.estimators import Schedule, Step
from gradalign.estimators.exact import Exact

ROWS = 64  # rows of a Hessian that are computed at once; each needs activations of its own


class FullHessian(DoubleBackward):
    """Fills `.grad` as `DoubleBackward` does, but forms every n x n Hessian and multiplies it.

        .grad = gbar - weight * (1/k) sum_i s H_i w_i

    The matrix is that of `torch.func.hessian`, by reverse mode over the gradient that the base pass has left, row by row.
    `torch.func.hessian` itself would evaluate loss_fn again, moving buffers, refuses dropout, and needs forward-mode rules
    that some operations lack.

    Passes: k, and n k backward ones for the rows. Copies over plain training: n of the parameters' size for the one Hessian
    that is held, and the graphs of all k first backwards.

    Args:
        model: the module, or several, whose parameters are trained.
        weight: of the term, a number or a function of the step (counted from 0).
        objective: A: "dot", "norm", "variance" or "cosine".
        normalize: "direction", "none" or "gradient".
        max_numel: the largest n to try; 20,000 is 1.6 GB a Hessian in fp32.
        params: the parameters that A is measured on; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry.
        backend: what runs the kernels: "auto", "reference", "native" or "triton".

    Raises:
        ValueError: more than `max_numel` trainable scalars; a name, number or parameter that does not fit.
        TypeError: an argument of the wrong type.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        weight: float | Callable[[int], float],
        *,
        objective: str = "dot",
        normalize: str = "direction",
        max_numel: int = 20_000,
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        zeroed_grads: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            model,
            weight,
            objective=objective,
            normalize=normalize,
            params=params,
            scaler=scaler,
            zeroed_grads=zeroed_grads,
            backend=backend,
        )
        self._max_numel = validation.count("max_numel", max_numel, least=1)
        self._fitting(self._trainable())

    def _schedule(self, step: Step, total: Vector) -> Schedule:
        self._fitting(step.space.params)
        return Formed(step, total)

    def _fitting(self, params: Sequence[Parameter]) -> None:
        numel = sum(p.numel() for p in params)
        if numel > self._max_numel:
            raise ValueError(
                f"FullHessian: expected at most max_numel = {self._max_numel} trainable scalars; got n = {numel}, whose "
                f"Hessian has {numel**2:.1e} elements; use DoubleBackward or GradAlign, or a larger max_numel"
            )


class Formed(Exact):
    """`Exact` with every Hessian written out."""

    def product(self, graph: Vector, w: Vector) -> Vector:
        """H w with the matrix H."""
        params = self.step.space.params
        flat = torch.cat([_flat(p, t, self.step.space.home) for p, t in zip(params, w, strict=True)])
        parts = (flat @ self.hessian(graph)).split([p.numel() for p in params])
        return [part.view(p.shape).to(p) for part, p in zip(parts, params, strict=True)]

    def hessian(self, graph: Vector) -> Tensor:
        """n x n: row j is the derivative of the j-th element of the gradient by all parameters."""
        params = self.step.space.params
        *starts, numel = accumulate((p.numel() for p in params), initial=0)
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
        hessian = torch.zeros(numel, numel, dtype=dtype, device=self.step.space.home)
        for i, g in enumerate(graph):
            if g is None or not g.requires_grad:
                continue
            for first in range(0, g.numel(), ROWS):
                last = min(first + ROWS, g.numel())
                for start, block in zip(starts, self.rows(g, first, last), strict=True):
                    if block is not None:
                        block = block.flatten(1)
                        hessian[starts[i] + first : starts[i] + last, start : start + block.shape[1]] = block
        return hessian

    def rows(self, g: Tensor, first: int, last: int) -> tuple[Tensor | None, ...]:
        """Derivatives of some elements of a gradient by all parameters, (rows, *shape) each."""
        units = torch.zeros(last - first, g.numel(), dtype=g.dtype, device=g.device)
        units[:, first:last].fill_diagonal_(1.0)
        self.step.passes.count += last - first
        with validation.twice_differentiable("FullHessian"):
            return torch.autograd.grad(
                g,
                self.step.space.params,
                units.view(-1, *g.shape),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )


def _flat(param: Parameter, vector: Tensor | None, home: torch.device) -> Tensor:
    wide = torch.promote_types(param.dtype, torch.float32)
    return (torch.zeros_like(param) if vector is None else vector).reshape(-1).to(home, wide)
