"""AdamW, and Adam with coupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradalign.backends.signatures import AdamWOptions
from gradalign.optim import arguments
from gradalign.optim.fused import FusedOptimizer


class AdamW(FusedOptimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) in one fused step.

        theta <- (1 - lr weight_decay) theta - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    The equation in full is that of `gradalign.ops.adamw_step_`; the arguments that are not listed here are those of
    `FusedOptimizer`. The state is torch's ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"), and "master".

    Args:
        params: parameters, (name, parameter) pairs, or groups of them with their own settings.
        lr: learning rate, float or tensor.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: float or tensor.
        amsgrad: divide by the largest second moment so far.
        maximize: go up instead of down.
        decoupled_weight_decay: False gives Adam: the decay is part of the gradient.
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
        eps: float = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
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
            "amsgrad": amsgrad,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
        }
        super().__init__(
            params, defaults, max_grad_norm=max_grad_norm, clear=clear, skip_nonfinite=skip_nonfinite, backend=backend
        )

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def _options(self, group: Mapping[str, Any], shared: dict[str, bool]) -> AdamWOptions:
        beta1, beta2 = map(float, group["betas"])
        decoupled = group["decoupled_weight_decay"]
        return AdamWOptions(beta1=beta1, beta2=beta2, eps=group["eps"], decoupled=decoupled, **shared)
