"""SGD with momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradalign.backends.signatures import SGDOptions
from gradalign.optim import arguments
from gradalign.optim.fused import FusedOptimizer


class SGD(FusedOptimizer):
    """SGD with momentum (Sutskever et al. 2013), in the form of `torch.optim.SGD`, in one fused step.

        g <- grad + weight_decay theta;  b <- momentum b + (1 - dampening) g, at the first step b <- g
        theta <- theta - lr b      (nesterov: theta - lr (g + momentum b); without momentum: theta - lr g)

    The arguments that are not listed here are those of `FusedOptimizer`. The state is torch's "momentum_buffer", and
    "step" (0: the buffer has not been used yet) and "master".

    Args:
        params: parameters, (name, parameter) pairs, or groups of them with their own settings.
        lr: learning rate, float or tensor.
        momentum: decay rate of the buffer; 0 keeps none.
        dampening: how much of the gradient the buffer leaves out.
        weight_decay: float or tensor.
        nesterov: look ahead along the buffer.
        maximize: go up instead of down.
        max_grad_norm: clip to this global norm.
        clear: what becomes of the gradients: None, "none" or "zero".
        skip_nonfinite: skip the step where the gradients are not finite.
        master_weights: keep float32 masters of bfloat16 and float16 parameters, and their buffers in float32.
        stochastic_rounding: round bfloat16 parameters stochastically, with buffers in float32.
        rounding_seed: of that rounding, in [0, 2^32); the same on all data-parallel ranks.
        backend: "auto", "native", "triton" or "reference".
        fused: accepted for calls written for torch; every step here is fused.
        foreach: accepted likewise.
        differentiable: accepted where it is False: no graph of the step is kept.

    Raises:
        ValueError: settings out of range; masters together with stochastic rounding; `differentiable`.
        TypeError: settings that are no numbers; complex parameters; float16 ones with stochastic rounding.
    """

    _first_moment_name = "momentum_buffer"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | Tensor | None = None,
        clear: str | None = None,
        skip_nonfinite: bool = True,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        backend: str = "auto",
        fused: bool | None = None,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        arguments.not_differentiable(differentiable)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "master_weights": master_weights,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
        }
        super().__init__(
            params, defaults, max_grad_norm=max_grad_norm, clear=clear, skip_nonfinite=skip_nonfinite, backend=backend
        )

    _bias_corrected = ()

    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _init_state(self, param: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[param]
        if group["momentum"] and "momentum_buffer" not in state:
            state.pop("step", None)  # a new buffer: its first step is to come
        elif "step" not in state and "momentum_buffer" in state:
            state["step"] = torch.ones((), dtype=torch.float32, device=param.device)  # from torch, which counts none
        super()._init_state(param, group)

    def _options(self, group: Mapping[str, Any], shared: dict[str, bool]) -> SGDOptions:
        own = {name: group[name] for name in ("momentum", "dampening", "nesterov")}
        return SGDOptions(**own, **shared)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; `torch.optim.SGD` can load it.

        Returns:
            As torch's; a buffer that has not been used yet is left out, since torch would not know it from a used one.
        """
        saved = super().state_dict()
        params = {key for group in saved["param_groups"] for key in group["params"]}
        state = {key: _without_unused(entry) if key in params else entry for key, entry in saved["state"].items()}
        return {**saved, "state": state}


def _without_unused(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    if float(entry.get("step", 1)) != 0:
        return entry
    return {k: v for k, v in entry.items() if k not in ("step", "momentum_buffer")}
