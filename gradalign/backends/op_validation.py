"""Input validation of the ops. An error says what was expected, what was got and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.backends import rows
from gradalign.backends.signatures import StepOptions, StepScalars, StepTensors, Tensors
from gradalign.engine.addresses import repeats, span

DTYPE, DEVICE, SHAPE = map(attrgetter, ("dtype", "device", "shape"))
DIM = methodcaller("dim")


def tensor_lists(op: str, mutated: dict[str, Sequence[Tensor]], read: dict[str, Sequence[Tensor]]) -> None:
    """The lists of an op agree in length, shapes and device, and nothing that is written overlaps.

    A list that is written may be the same tensor, element for element, as one that is read (in place); anything else that
    shares memory is refused, since the result would depend on the order of the work.
    """
    named = {**mutated, **read}
    for name, tensors in named.items():
        tensor_list(op, name, tensors)
    if _agree(list(named.values()), len(mutated)):
        return
    (first_name, first), *others = named.items()
    for name, tensors in others:
        if len(tensors) != len(first):
            raise ValueError(
                f"{op}: expected {name} to have one tensor for each of {first_name} ({len(first)}); got {len(tensors)}"
            )
    devices = {t.device for tensors in named.values() for t in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"{op}: expected tensors of one device; got {sorted(map(str, devices))}; call it once a device"
        )
    for name, tensors in named.items():
        for i, t in enumerate(tensors):
            if not t.is_floating_point() or t.layout != torch.strided:
                raise TypeError(
                    f"{op}: expected dense real floating-point tensors; got {t.dtype}, {t.layout} in {name}[{i}]"
                )
            if t.shape != first[i].shape:
                shapes = f"{tuple(first[i].shape)}; got {tuple(t.shape)}"
                raise ValueError(f"{op}: expected {name}[{i}] to have the shape of {first_name}[{i}], {shapes}")
    _no_overlap(op, mutated, read)


def _agree(lists: list[Sequence[Tensor]], num_mutated: int) -> bool:
    """Whether all is as it has to be, by one look at what the tensors are; False also where that does not tell."""
    kept = tuple(map(rows.kept, lists))
    module, read = rows.reader(), rows.read(kept)
    return module is not None and read is not None and module.agree(read, num_mutated)


def state_of_params(tensors: StepTensors, options: StepOptions, read: bytearray | None) -> None:
    """The lists of an optimizer step have the shapes of its parameters; kernels see elements and no shapes.

    Args:
        tensors: the lists.
        options: of the step.
        read: the rows of its lists in the order of the schema, where they were read; without empty ones, or with them.
    """
    params, grads, states, masters, _ = tensors
    module = rows.reader()
    if read is not None and module is not None:
        if module.same_shapes(read):
            return
    elif _same_shapes(params, (grads, *states, masters)):
        return
    for name, list_ in {"grads": grads, **dict(zip(options.states, states, strict=True)), "masters": masters}.items():
        for i, (p, t) in enumerate(zip(params, list_, strict=False)):
            if t.shape != p.shape:
                raise ValueError(
                    f"{options.op}: expected {name}[{i}] to have the shape of params[{i}], {tuple(p.shape)}; got "
                    f"{tuple(t.shape)}; after a parameter got another shape make a new optimizer"
                )


def _same_shapes(params: Tensors, others: Sequence[Tensors]) -> bool:
    shapes = list(map(SHAPE, params))
    return all(list(map(SHAPE, other)) == shapes for other in others if other)


def tensor_list(op: str, name: str, tensors: Any) -> None:
    """A list that can be read more than once (an iterator would be empty the second time), of tensors."""
    if isinstance(tensors, (Tensor, Mapping, str)) or not (
        hasattr(tensors, "__len__") and hasattr(tensors, "__getitem__")
    ):
        remedy = f"[{name}]" if isinstance(tensors, Tensor) else f"list({name})"
        raise TypeError(f"{op}: expected {name} to be a list of tensors; got {type(tensors).__name__}; pass {remedy}")
    if set(map(type, tensors)) <= {Tensor, Parameter}:
        return
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: expected {name} to be a list of tensors; got {type(t).__name__} in {name}[{i}]")


def values_in_memory(op: str, args: Iterable[object]) -> None:
    """The memory of every tensor holds its values, for kernels that torch does not resolve tensors for.

    Args:
        op: its name.
        args: its arguments: lists of tensors, tensors, anything else.
    """
    for arg in args:
        tensors = (arg,) if isinstance(arg, Tensor) else arg if isinstance(arg, (list, tuple)) else ()
        if any(map(Tensor.is_neg, tensors)) or any(map(Tensor._is_zerotensor, tensors)):
            raise ValueError(
                f"{op}: expected tensors whose memory holds their values; got a view with the negative bit (of "
                "x.conj().imag, say) or a tensor that stands for zeros; pass t.resolve_neg(), or t.clone()"
            )


def zero_dim(op: str, device: torch.device | None, named: Mapping[str, object]) -> None:
    """0-dim tensors where the lists are; None is left out."""
    for name, value in named.items():
        if value is None:
            continue
        where = device or "the device of the lists"
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{op}: expected {name} to be a 0-dim tensor on {where}; got {type(value).__name__} ({value!r}); "
                "make it with torch.full((), value, device=...)"
            )
        if value.dim() != 0 or (device is not None and value.device != device):
            raise ValueError(
                f"{op}: expected {name} to be a 0-dim tensor on {where}; got shape {tuple(value.shape)} on {value.device}; "
                "make it with torch.full((), value, device=...)"
            )


def backups_hold(op: str, backups: Tensors, params: Tensors, wider: bool) -> None:
    """Every backup has the dtype of its parameter, or (`wider`) one that holds all of its values."""
    if list(map(DTYPE, backups)) == list(map(DTYPE, params)):
        return
    for i, (b, p) in enumerate(zip(backups, params, strict=True)):
        if b.dtype != (torch.promote_types(b.dtype, p.dtype) if wider else p.dtype):
            dtype = f"{p.dtype} or wider" if wider else str(p.dtype)
            raise TypeError(
                f"{op}: expected backups[{i}] to be {dtype}, as params[{i}]; got {b.dtype}, which would not give it back "
                "bit for bit"
            )


def _no_overlap(op: str, mutated: dict[str, Sequence[Tensor]], read: dict[str, Sequence[Tensor]]) -> None:
    for name, tensors in mutated.items():
        for i, t in enumerate(tensors):
            if not t.is_contiguous() and t.numel() > 1 and repeats(t):
                raise ValueError(
                    f"{op}: expected {name}[{i}] to own each of its elements; got a tensor with an element in several places "
                    "(expanded, or windows of one buffer); clone it first"
                )
    spans = [
        (*span(t), name in mutated, i, name, _layout(t))
        for name, tensors in {**mutated, **read}.items()
        for i, t in enumerate(tensors)
        if t.numel() and t.device.type != "meta"
    ]
    spans.sort(key=lambda s: (s[0], not s[2]))  # what is written first: each of the others is then compared with it
    reach: tuple | None = None  # of those so far, the one that reaches furthest
    written: tuple | None = None  # the same, of those that are written
    for here in spans:
        for other in (written, reach if here[2] else None):
            if other is not None and here[0] < other[1]:
                in_place = (
                    here[3] == other[3] and here[5] == other[5] and not (here[2] and other[2] and here[4] == other[4])
                )
                if not in_place:
                    raise ValueError(
                        f"{op}: expected tensors that do not share memory; {here[4]}[{here[3]}] overlaps "
                        f"{other[4]}[{other[3]}]; clone one of them"
                    )
        if reach is None or here[1] > reach[1]:
            reach = here
        if here[2] and (written is None or here[1] > written[1]):
            written = here


def _layout(t: Tensor) -> tuple:
    return (t.data_ptr(), tuple(t.stride()), str(t.dtype))


def step(tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None:
    """The lists and scalars of an optimizer step agree, and nothing that is written overlaps."""
    op, params, steps = options.op, tensors.params, tensors.steps
    states = dict(zip(options.states, tensors.states, strict=True))
    mutated = {"params": params, "grads": tensors.grads}
    mutated |= {name: ts for name, ts in states.items() if ts or name in options.required_states}
    if tensors.masters:
        mutated["masters"] = tensors.masters
    tensor_lists(op, mutated, {})
    tensor_list(op, "steps", steps)
    if len(steps) != len(params):
        raise ValueError(
            f"{op}: expected steps to have one tensor for each of params ({len(params)}); got {len(steps)}; "
            "make them with torch.zeros((), device=p.device)"
        )
    device = params[0].device if params else None
    if set(map(DIM, steps)) != {0} or set(map(DEVICE, steps)) != {device}:
        zero_dim(op, device, {f"steps[{i}]": count for i, count in enumerate(steps)})
    if len(set(map(Tensor.data_ptr, steps))) < len(steps) and (device is None or device.type != "meta"):
        raise ValueError(
            f"{op}: expected a step tensor of its own for each of params; got one tensor in several places; make them with "
            "[torch.zeros((), device=p.device) for p in params]"
        )
    zero_dim(op, device, scalars._asdict())
    if scalars.seed is not None:
        stochastic_rounding(op, params, tensors.masters)


def stochastic_rounding(op: str, params: Tensors, masters: Tensors = ()) -> None:
    """Parameters that a seed can be used with: bfloat16, without masters."""
    if masters:
        raise ValueError(
            f"{op}: expected either masters or stochastic rounding; got both; masters lose nothing to rounding: drop the seed"
        )
    for p in params:
        if p.dtype != torch.bfloat16:
            raise TypeError(
                f"{op}: expected bfloat16 parameters for stochastic rounding; got {p.dtype}; keep fp32 masters for them instead"
            )
