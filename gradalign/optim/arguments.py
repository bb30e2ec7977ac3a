"""Input validation of the optimizers. An error says what was expected, what was got and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gradalign.engine import validation
from gradalign.engine.addresses import repeats

NUMBERS = ("lr", "eps", "weight_decay", "momentum", "dampening")
OF_ALL_GROUPS = ("max_grad_norm", "clear", "skip_nonfinite", "backend")


def settings(group: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """The settings of a parameter group have the right types, are in range and may differ between groups.

    Keys that are not among `known` (the optimizer's own settings) are left to the user, as torch does.
    """
    for name in OF_ALL_GROUPS:
        if name in group:
            raise ValueError(
                f"{name}: expected one for all groups together; got {group[name]!r} in a parameter group; pass it to the "
                "optimizer itself"
            )
    not_differentiable(group.get("differentiable", False))
    own = {name: group[name] for name in known if name in group}
    for name in NUMBERS:
        number(name, own.get(name, 0.0))
    if "betas" in own:
        betas(own["betas"])
    _in_range(own)


def _in_range(group: Mapping[str, Any]) -> None:
    for name, words in (("lr", "learning rate"), ("eps", "epsilon value"), ("weight_decay", "weight_decay value")):
        value = group.get(name, 0.0)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element: expected a scalar; got shape {tuple(value.shape)}")
        if not value >= 0:
            raise ValueError(f"Invalid {words}: {value}; expected a number of at least 0 for {name}")
    if not group.get("momentum", 0) >= 0:
        raise ValueError(f"Invalid momentum value: {group['momentum']}; expected a number of at least 0")
    if group.get("nesterov") and (group["momentum"] <= 0 or group["dampening"] != 0):
        raise ValueError(
            "Nesterov momentum requires a momentum and zero dampening; "
            f"got momentum={group['momentum']}, dampening={group['dampening']}"
        )
    if group["master_weights"] and group["stochastic_rounding"]:
        raise ValueError(
            "expected master_weights or stochastic_rounding; got both; masters lose nothing to rounding: choose one"
        )
    if not 0 <= group["rounding_seed"] < 1 << 32:
        raise ValueError(f"rounding_seed: expected an integer in [0, 2^32); got {group['rounding_seed']}")


def number(name: str, value: object) -> None:
    """A real number, or a tensor that holds one."""
    if not isinstance(value, (Real, Tensor)):
        raise TypeError(f"{name}: expected a number or a 0-dim tensor; got {type(value).__name__} ({value!r})")


def betas(values: Any) -> tuple[float, ...]:
    """Two decay rates in [0, 1), as numbers."""
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise ValueError(f"betas: expected two decay rates, as in (0.9, 0.999); got {values!r}")
    for i, value in enumerate(values):
        number(f"betas[{i}]", value)
    if len({isinstance(value, Tensor) for value in values}) > 1:
        raise ValueError(f"betas must be either both floats or both Tensors; got {values}")
    numbers = tuple(float(value) for value in values)
    for i, rate in enumerate(numbers):
        if not 0 <= rate < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {rate}; expected a number in [0, 1)")
    return numbers


def clip_norm(value: float | Tensor | None) -> None:
    """A norm to clip to, or None."""
    if value is None:
        return
    number("max_grad_norm", value)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"max_grad_norm: expected a 0-dim tensor; got shape {tuple(value.shape)}")
    if not value > 0:
        raise ValueError(f"max_grad_norm: expected a number above 0, or None to not clip; got {value!r}")


def not_differentiable(value: bool) -> None:
    """`differentiable` is False."""
    if value:
        raise ValueError(
            f"differentiable: expected False; got {value!r}; a fused step writes in place and leaves no graph; use torch's "
            "class of the same name to differentiate through a step"
        )


def parameters(params: Sequence[Tensor], stochastic: bool) -> None:
    """Parameters are real, given once, and no part of a flat one of FSDP1; not float16 with stochastic rounding."""
    if len({id(p) for p in params}) < len(params):
        raise ValueError(
            "expected every parameter once; got one several times in a group; a step would be taken several times"
        )
    for p in params:
        if not hasattr(p, "placements"):
            validation.real_and_whole(p)
        if getattr(p, "_fsdp_flattened", False):
            raise TypeError(
                "expected parameters, or shards of fully_shard; got those of FSDP1, whose norms over ranks are not known here; "
                "use fully_shard, its successor"
            )
        if stochastic and p.dtype == torch.float16:
            raise TypeError(
                "expected bfloat16 (or wider) parameters for stochastic rounding; got torch.float16; "
                "keep fp32 masters for them instead: master_weights=True"
            )


def precise(param: Tensor) -> None:
    """A parameter with a gradient has 16 bits or more; frozen ones may have any."""
    if not param.is_floating_point() or param.dtype.itemsize < 2:
        raise TypeError(
            f"expected parameters of 16 bits or more, with a floating point; got {param.dtype} with a gradient"
        )


def not_expanded(params: Sequence[Tensor]) -> None:
    """No parameter has one element in several places: a step would be taken several times."""
    if all(map(Tensor.is_contiguous, params)):
        return
    for p in params:
        if not p.is_contiguous() and repeats(p):
            raise ValueError(
                f"expected parameters that own each of their elements; got one of shape {tuple(p.shape)} with an element in "
                "several places (expanded, or windows of one buffer); clone it first, or make the unexpanded tensor the "
                "parameter"
            )


def dense_gradients(optimizer: str, grads: Sequence[Tensor]) -> None:
    """No gradient is sparse. All of them share a layout."""
    if grads[0].layout is not torch.strided:
        raise TypeError(
            f"{optimizer} does not support sparse gradients: expected dense ones; got {grads[0].layout}; "
            "build embeddings with sparse=False"
        )


def same_device(optimizer: str, param: Tensor, state: Mapping[str, Sequence[Tensor]]) -> None:
    """The state is on the device of its parameter. The tensors of a list share a device."""
    for name, tensors in state.items():
        if tensors[0].device != param.device:
            raise ValueError(
                f"{optimizer}: expected {name} on {param.device}, where its parameter is; got {tensors[0].device}; make the "
                "optimizer after model.to(device), or move its state with optimizer.load_state_dict(optimizer.state_dict())"
            )
