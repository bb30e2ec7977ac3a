"""What bad input is told: expected, got, remedy. The wording lives with the check, the checks live here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """`value` if it is one of `allowed`."""
    allowed = sorted(allowed)
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}; got {value!r}")
    return str(value)


def positive(name: str, value: float, unit: str) -> float:
    """`value` if it is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number ({unit}); got {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a finite number above 0 ({unit}); got {value!r}")
    return float(value)


def finite(name: str, value: object) -> float:
    """`value` as a float, if it is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a finite number; got {type(value).__name__} ({value!r})")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number; got {value!r}")
    return float(value)


def count(name: str, value: object, least: int) -> int:
    """`value` if it is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer of at least {least}; got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}; got {value}")
    return value


def tensor_lists(op: str, mutated: dict[str, Sequence[Tensor]], read: dict[str, Sequence[Tensor]]) -> None:
    """The lists of an op agree in length, shapes and device, and nothing that is written overlaps.

    A list that is written may be the same tensor, element for element, as one that is read (in place); anything else that
    shares memory is refused, since the result would depend on the order of the work.
    """
    named = {**mutated, **read}
    (first_name, first), *others = named.items()
    for name, tensors in others:
        if len(tensors) != len(first):
            raise ValueError(f"{op}: expected {name} to have one tensor for each of {first_name} ({len(first)}); got {len(tensors)}")
    devices = {t.device for tensors in named.values() for t in tensors}
    if len(devices) > 1:
        raise ValueError(f"{op}: expected tensors of one device; got {sorted(map(str, devices))}; call it once a device")
    for name, tensors in named.items():
        for i, t in enumerate(tensors):
            if not t.is_floating_point() or t.layout != torch.strided:
                raise TypeError(f"{op}: expected dense real floating-point tensors; got {t.dtype}, {t.layout} in {name}[{i}]")
            if t.shape != first[i].shape:
                raise ValueError(
                    f"{op}: expected {name}[{i}] to have the shape of {first_name}[{i}], {tuple(first[i].shape)}; got {tuple(t.shape)}"
                )
    _no_overlap(op, mutated, read)


def _no_overlap(op: str, mutated: dict[str, Sequence[Tensor]], read: dict[str, Sequence[Tensor]]) -> None:
    for name, tensors in mutated.items():
        for i, t in enumerate(tensors):
            if t.numel() > 1 and any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True)):
                raise ValueError(f"{op}: expected {name}[{i}] to own each of its elements; got an expanded tensor; clone it first")
    spans = sorted(
        (*_span(t), name in mutated, i, name, _layout(t))
        for name, tensors in {**mutated, **read}.items()
        for i, t in enumerate(tensors)
        if t.numel() and t.device.type != "meta"
    )
    reach: tuple | None = None  # of those so far, the one that reaches furthest
    written: tuple | None = None  # the same, of those that are written
    for span in spans:
        for other in (written, reach if span[2] else None):
            if other is not None and span[0] < other[1]:
                in_place = span[3] == other[3] and span[5] == other[5] and not (span[2] and other[2] and span[4] == other[4])
                if not in_place:
                    raise ValueError(
                        f"{op}: expected tensors that do not share memory; {span[4]}[{span[3]}] overlaps "
                        f"{other[4]}[{other[3]}]; clone one of them"
                    )
        if reach is None or span[1] > reach[1]:
            reach = span
        if span[2] and (written is None or span[1] > written[1]):
            written = span


def _span(t: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


def _layout(t: Tensor) -> tuple:
    return (t.data_ptr(), tuple(t.stride()), str(t.dtype))
