"""What bad input to the optimizer steps is told: expected, got, remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradalign import checks

Tensors = Sequence[Tensor]


def step_lists(
    op: str,
    params: Tensors,
    grads: Tensors,
    states: dict[str, Tensors],
    masters: Tensors,
    steps: Tensors,
    scalars: dict[str, Tensor | None],
) -> None:
    """The lists and scalars of a step op agree, and nothing that is written overlaps."""
    mutated = {"params": params, "grads": grads, **states}
    if masters:
        mutated["masters"] = masters
    checks.tensor_lists(op, mutated, {})
    checks.tensor_list(op, "steps", steps)
    if len(steps) != len(params):
        raise ValueError(
            f"{op}: expected steps to have one tensor for each of params ({len(params)}); got {len(steps)}; "
            "make them with torch.zeros((), device=p.device)"
        )
    device = params[0].device if params else None
    checks.scalars(op, device, {**{f"steps[{i}]": step for i, step in enumerate(steps)}, **scalars})
    if scalars.get("seed") is not None:
        stochastic_rounding(op, params, masters)


def stochastic_rounding(op: str, params: Tensors, masters: Tensors = ()) -> None:
    """A seed makes sense: bfloat16 parameters without masters."""
    if masters:
        raise ValueError(
            f"{op}: expected either masters or stochastic rounding; got both; masters lose nothing to rounding: drop the seed"
        )
    for p in params:
        if p.dtype != torch.bfloat16:
            raise TypeError(
                f"{op}: expected bfloat16 parameters for stochastic rounding; got {p.dtype}; keep fp32 masters for them instead"
            )


def settings(group: Mapping[str, Any]) -> None:
    """The settings of a parameter group are in range."""
    for name, words in (("lr", "learning rate"), ("eps", "epsilon value"), ("weight_decay", "weight_decay value")):
        value = group.get(name, 0.0)
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element: expected a scalar; got shape {tuple(value.shape)}")
        if not value >= 0:
            raise ValueError(f"Invalid {words}: {value}; expected a number of at least 0 for {name}")
    betas(group.get("betas", ()))
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


def betas(values: Sequence[float | Tensor]) -> tuple[float, ...]:
    """Decay rates in [0, 1), as numbers."""
    if len({isinstance(value, Tensor) for value in values}) > 1:
        raise ValueError(f"betas must be either both floats or both Tensors; got {values}")
    numbers = tuple(float(value) for value in values)
    for i, number in enumerate(numbers):
        if not 0 <= number < 1:
            raise ValueError(f"Invalid beta parameter at index {i}: {number}; expected a number in [0, 1)")
    return numbers


def parameters(params: Sequence[Tensor], stochastic: bool) -> None:
    """Parameters of a kind that can be stepped."""
    for p in params:
        checks.real_and_whole(p)
        if stochastic and p.dtype == torch.float16:
            raise TypeError(
                "expected bfloat16 (or wider) parameters for stochastic rounding; got torch.float16; "
                "keep fp32 masters for them instead: master_weights=True"
            )


def dense_gradients(optimizer: str, grads: Sequence[Tensor]) -> None:
    """No gradient is sparse; of gradients that share a layout."""
    if grads[0].layout is not torch.strided:
        raise TypeError(
            f"{optimizer} does not support sparse gradients: expected dense ones; got {grads[0].layout}; "
            "build embeddings with sparse=False"
        )


def same_device(optimizer: str, param: Tensor, state: Mapping[str, Sequence[Tensor]]) -> None:
    """The state lives where its parameter does; of lists whose tensors share a device."""
    for name, tensors in state.items():
        if tensors[0].device != param.device:
            raise ValueError(
                f"{optimizer}: expected {name} on {param.device}, where its parameter is; got {tensors[0].device}; make the "
                "optimizer after model.to(device), or move its state with optimizer.load_state_dict(optimizer.state_dict())"
            )
