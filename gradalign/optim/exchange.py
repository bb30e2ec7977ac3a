"""Loading a state dict, from here or from torch's class of the same name, without losing precision.

`torch.optim.Optimizer.load_state_dict` casts every floating-point state to the dtype of its parameter, which would round
float32 masters and moments of bfloat16 parameters. State travels through it wrapped, and is placed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uncast:
    """A state tensor that torch's loading is not to touch."""

    tensor: Tensor


def wrap_tensors(
    state_dict: Mapping[str, Any],
    param_groups: Sequence[Mapping[str, Any]],
    state_names: Callable[[Mapping[str, Any]], tuple[str, ...]],
) -> dict[str, Any]:
    """The state dict, ready for torch's loading.

    The tensors of parameters are wrapped, state that is not there (None, or {} from a flattened state dict) is left out, and
    settings that the groups lack are filled in from here. Entries of "state" that are no parameters stay as they are.

    Args:
        state_dict: as it was saved.
        param_groups: of the optimizer that loads it.
        state_names: the state that is of the parameters' shapes, by the settings of a group; "master" is, too.

    Raises:
        ValueError: state of another shape than its parameter.
    """
    groups = list(state_dict["param_groups"])
    params = {key for group in groups for key in group["params"]}
    state = {key: _wrapped(entry) if key in params else entry for key, entry in state_dict["state"].items()}
    for i, (mine, saved) in enumerate(zip(param_groups, groups, strict=False)):
        groups[i] = {**{k: v for k, v in mine.items() if k not in ("params", "param_names")}, **saved}
        names = (*state_names(groups[i]), "master")
        _no_other_shapes(zip(mine["params"], saved["params"], strict=False), state_dict["state"], names)
    return {**state_dict, "state": state, "param_groups": groups}


def _no_other_shapes(params: Iterable[tuple[Tensor, Any]], state: Mapping[Any, Any], names: Sequence[str]) -> None:
    """State belongs to a parameter by its position: where parameters changed places, shapes may tell."""
    for param, key in params:
        entry = state.get(key, {})
        for name in names:
            value = entry.get(name)
            if isinstance(value, Tensor) and value.shape != param.shape:
                raise ValueError(
                    f"load_state_dict: expected state of the shapes of the parameters, {tuple(param.shape)} for number "
                    f"{key}; got {name} of shape {tuple(value.shape)}; give the optimizer the parameters in the order in "
                    "which it had them when the state was saved"
                )


def counted(state: Mapping[str, Any], moments: Sequence[str]) -> None:
    """A parameter has its moments and their number of steps, or has not been stepped.

    Raises:
        ValueError: one without the other: the bias would be corrected for another number of steps.
    """
    names = ("step", *moments)
    missing = [name for name in names if name not in state]
    if not 0 < len(missing) < len(names):
        return
    steps = state.get("step", 1)
    if float(steps.tensor if isinstance(steps, Uncast) else steps) == 0:
        return
    without = ", ".join(f'"{name}"' for name in missing)
    raise ValueError(
        f"load_state_dict: expected the number of steps beside the moments of every parameter; got {sorted(state)} without "
        f"{without}, so that bias would be corrected for another number of steps; load the state of an optimizer of this kind"
    )


def _wrapped(entry: Mapping[str, Any]) -> dict[str, Any]:
    there = {k: v for k, v in entry.items() if not (v is None or (isinstance(v, dict) and not v))}
    return {k: Uncast(v) if isinstance(v, Tensor) else v for k, v in there.items()}


def place_state(value: Any, name: str, param: Tensor, least: torch.dtype) -> Any:
    """The state called `name` of `param`: on its device, a copy, in the wider of its own dtype and `least`.

    Steps are counted in float32; float64 is kept for float64 parameters only.
    """
    if not isinstance(value, Uncast):
        return (
            torch.tensor(float(value), dtype=torch.float32, device=param.device)
            if isinstance(value, (int, float)) and name == "step"
            else value
        )
    saved = value.tensor
    dtype = saved.dtype
    if name == "step":
        dtype = torch.float32
    elif dtype.is_floating_point:
        dtype = torch.promote_types(dtype, least)
        if dtype == torch.float64 and param.dtype != torch.float64:
            dtype = torch.float32
    return saved.detach().to(device=param.device, dtype=dtype, copy=True)
