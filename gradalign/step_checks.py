"""What bad input to the optimizer steps is told: expected, got, remedy."""

from __future__ import annotations

from collections.abc import Sequence

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
    if len(steps) != len(params):
        raise ValueError(
            f"{op}: expected steps to have one tensor for each of params ({len(params)}); got {len(steps)}; "
            "make them with torch.zeros((), device=p.device)"
        )
    device = params[0].device if params else None
    zero_dim = {**{f"steps[{i}]": step for i, step in enumerate(steps)}, **scalars}
    for name, scalar in zero_dim.items():
        if scalar is not None and (scalar.dim() != 0 or (device is not None and scalar.device != device)):
            raise ValueError(
                f"{op}: expected {name} to be a 0-dim tensor on {device}; got shape {tuple(scalar.shape)} on {scalar.device}; "
                "make it with torch.full((), value, device=...)"
            )
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
