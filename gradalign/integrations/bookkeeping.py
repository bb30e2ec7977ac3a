"""What a training step notes in its trainer, metrics and counters, is taken back after a displaced pass."""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CLONED = 2**16  # elements: a larger tensor is no metric; a write into it is refused instead of taken back
PLAIN = (bool, int, float, complex, str, bytes, type(None))
Restore = Callable[[], Any]


@contextmanager
def taken_back(owner: Any, besides: Collection[str] = ()) -> Iterator[None]:
    """Afterwards the numbers, strings, tensors and containers among the attributes of an object are as before.

    Containers keep their identity. Metrics of torchmetrics among its modules are included.

    Args:
        owner: the object.
        besides: attributes that are left alone.

    Raises:
        RuntimeError: a large tensor was written in place.
    """
    owners = [owner, *(m for m in _modules(owner) if m is not owner and _is_metric(m))]
    restores = [_attributes(vars(o), besides if o is owner else ()) for o in owners]
    try:
        yield
    finally:
        for restore in restores:
            restore()


def _modules(owner: Any) -> Iterator[nn.Module]:
    if isinstance(owner, nn.Module):
        yield from owner.modules()
    else:
        yield from (value for value in vars(owner).values() if _is_metric(value))


def _is_metric(value: Any) -> bool:
    """A metric of torchmetrics, by what it has."""
    return isinstance(value, nn.Module) and hasattr(value, "_defaults") and hasattr(value, "_update_count")


def _attributes(values: dict[str, Any], besides: Collection[str]) -> Restore:
    hidden = {*besides, "_parameters", "_buffers", "_modules", "_defaults"}
    seen: set[int] = set()
    saved = {
        name: (value, _saved(value, name, seen))
        for name, value in values.items()
        if name not in hidden and _noted(value)
    }
    others = {name: value for name, value in values.items() if name not in hidden and name not in saved}

    def restore() -> None:
        for name in [name for name, value in values.items() if name not in hidden and _noted(value)]:
            if name in others:
                values[name] = others[name]
            elif name not in saved:
                del values[name]
        for name, (value, undo) in saved.items():
            values[name] = value
            undo()

    return restore


def _noted(value: Any) -> bool:
    return isinstance(value, (*PLAIN, Tensor, dict, list, set, deque))


def _saved(value: Any, name: str, seen: set[int]) -> Restore:
    """What brings the contents of a value back; nothing for a container that was seen before."""
    if isinstance(value, Tensor):
        return _tensor(value, name)
    if not isinstance(value, (dict, list, set, deque)) or id(value) in seen:
        return lambda: None
    seen.add(id(value))
    if isinstance(value, set):
        members = set(value)
        return lambda: None if value == members else _refill_set(value, members)
    inners = list(value.values()) if isinstance(value, dict) else list(value)
    keys = list(value) if isinstance(value, dict) else []
    undos = [_saved(inner, name, seen) for inner in inners]

    def restore() -> None:
        if isinstance(value, dict):
            _restore_dict(value, keys, inners)
        elif not _same(value, inners):
            value.clear()
            value.extend(inners)
        for undo in undos:
            undo()

    return restore


def _refill_set(value: set, members: set) -> None:
    value.clear()
    value.update(members)


def _restore_dict(value: dict, keys: list, inners: list) -> None:
    """By the methods of the plain class: those of classes derived from it count (Counter) or refuse (ModelOutput)."""
    if _same(value, keys) and _same(value.values(), inners):
        return
    kind: type[dict] = OrderedDict if isinstance(value, OrderedDict) else dict
    kind.clear(value)
    for key, inner in zip(keys, inners, strict=True):
        kind.__setitem__(value, key, inner)


def _same(now: Iterable[Any], before: list) -> bool:
    """Whether these are the same objects in the same order."""
    found = list(now)
    return len(found) == len(before) and all(map(operator.is_, found, before))


def _tensor(value: Tensor, name: str) -> Restore:
    if value.is_inference() or value.requires_grad:
        return lambda: None
    version, copy = value._version, value.clone() if value.numel() <= CLONED else None

    def restore() -> None:
        if value._version == version:
            return
        if copy is None:
            raise RuntimeError(
                f"training_step: expected metrics of at most {CLONED} elements, which are taken back after a displaced pass; "
                f"got a write into {name}, of shape {tuple(value.shape)}; do it where aligner.displaced is False"
            )
        with torch.no_grad():
            value.copy_(copy)

    return restore
