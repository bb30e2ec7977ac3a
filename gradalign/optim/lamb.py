"""LAMB."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradalign.backends import dispatch
from gradalign.backends.chunks import compute_dtype
from gradalign.backends.signatures import LAMBOptions
from gradalign.engine.devices import to_device
from gradalign.optim import arguments, trust_ratio
from gradalign.optim.batch import Batch, DeviceScalars
from gradalign.optim.fused import FusedOptimizer
from gradalign.optim.gradients import GradientScale


class LAMB(FusedOptimizer):
    """LAMB (You et al. 2020, arXiv:1904.00962) in one fused step of two passes over memory.

        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay theta
        theta <- theta - lr ||theta|| / ||u|| u

    with norms per tensor, bias correction, phi(z) = z, the decay inside the update, and a ratio of 1 where either norm is 0
    or the group has `trust=False` (biases and norms of layers, commonly). The arguments that are not listed here are
    those of `FusedOptimizer`. The state is "step", "exp_avg", "exp_avg_sq" and "master".

    Args:
        params: parameters, (name, parameter) pairs, or groups of them with their own settings.
        lr: learning rate, float or tensor: the length of a step relative to ||theta||.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: float or tensor.
        trust: whether the step is scaled by the ratio of the norms.
        maximize: go up instead of down.
        max_grad_norm: clip to this global norm.
        clear: what becomes of the gradients: None, "none" or "zero".
        skip_nonfinite: skip the step where the gradients are not finite.
        master_weights: keep float32 masters of bfloat16 and float16 parameters, and their moments in float32.
        stochastic_rounding: round bfloat16 parameters stochastically, with moments in float32.
        rounding_seed: of that rounding, in [0, 2^32); the same on all data-parallel ranks.
        backend: "auto", "native", "triton" or "reference".
        capturable: accepted for calls written for torch; every step here can be captured in a CUDA graph.
        fused: accepted likewise; every step here is fused.
        foreach: accepted likewise.
        differentiable: accepted where it is False: no graph of the step is kept.

    Raises:
        ValueError: settings out of range; masters together with stochastic rounding; `differentiable`.
        TypeError: settings that are no numbers; complex parameters; float16 ones with stochastic rounding.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float | Tensor = 1e-2,
        *,
        trust: bool = True,
        maximize: bool = False,
        max_grad_norm: float | Tensor | None = None,
        clear: str | None = None,
        skip_nonfinite: bool = True,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        backend: str = "auto",
        capturable: bool = False,
        fused: bool | None = None,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        arguments.not_differentiable(differentiable)
        defaults = {
            "lr": lr,
            "betas": arguments.betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "trust": trust,
            "maximize": maximize,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
        }
        super().__init__(
            params, defaults, max_grad_norm=max_grad_norm, clear=clear, skip_nonfinite=skip_nonfinite, backend=backend
        )

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _options(self, group: Mapping[str, Any], shared: dict[str, bool]) -> LAMBOptions:
        beta1, beta2 = map(float, group["betas"])
        trust = group["trust"] and self._mesh is None  # else the ratio is in the learning rate
        return LAMBOptions(beta1=beta1, beta2=beta2, eps=group["eps"], trust=trust, **shared)

    def _kinds(self, group: Mapping[str, Any], params: Sequence[Tensor]) -> tuple[Iterable[Hashable], ...]:
        one_by_one = self._mesh is not None and group["trust"]
        return (range(len(params)),) if one_by_one else super()._kinds(group, params)

    def _rates(self, batches: Sequence[Batch], scale: GradientScale, scalars: DeviceScalars) -> list[Tensor]:
        """On shards, times the ratio of the norms over all ranks."""
        rates, mesh = super()._rates(batches, scale, scalars), self._mesh
        sharded = [i for i, batch in enumerate(batches) if mesh is not None and batch.group["trust"]]
        if mesh is None or not sharded:
            return rates
        home = batches[0].device
        own = [to_device(self._squares(batches[i], scale, scalars), home) for i in sharded]
        squares = mesh.total(torch.stack(own))  # as often as there are replicas, in both
        for i, ratio in zip(sharded, trust_ratio.ratios(squares).unbind(), strict=True):
            rates[i] = rates[i].double() * to_device(ratio, batches[i].device)
        return rates

    def _squares(self, batch: Batch, scale: GradientScale, scalars: DeviceScalars) -> Tensor:
        dtypes = batch.dtypes | {compute_dtype(*batch.dtypes)}
        backend = dispatch.backend(self.backend, batch.device.type, dtypes)
        options = self._options(batch.group, {"maximize": batch.group["maximize"], "zero_grads": False})
        decay = scalars(batch.group["weight_decay"], batch.device)
        return trust_ratio.squares(batch, backend, to_device(scale.factor, batch.device), decay, options)
