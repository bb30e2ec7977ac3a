"""What a training step notes in its trainer, metrics and counters, is taken back after a displaced pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
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
    saved = {
        name: (value, _saved(value, name)) for name, value in values.items() if name not in hidden and _noted(value)
    }

    def restore() -> None:
        for name in [name for name, value in values.items() if name not in hidden and _noted(value)]:
            if name not in saved:
                del values[name]
        for name, (value, undo) in saved.items():
            values[name] = value
            undo()

    return restore


def _noted(value: Any) -> bool:
    return isinstance(value, (*PLAIN, Tensor, dict, list, set, deque))


def _saved(value: Any, name: str) -> Restore:
    """What brings the contents of a value back."""
    if isinstance(value, Tensor):
        return _tensor(value, name)
    if isinstance(value, dict):
        items = [(key, inner, _saved(inner, name)) for key, inner in value.items()]
        return lambda: _refill(value, [undo for *_, undo in items], lambda: value.update((k, v) for k, v, _ in items))
    if isinstance(value, (list, deque)):
        inners = [(inner, _saved(inner, name)) for inner in value]
        return lambda: _refill(value, [undo for _, undo in inners], lambda: value.extend(v for v, _ in inners))
    if isinstance(value, set):
        members = set(value)
        return lambda: _refill(value, [], lambda: value.update(members))
    return lambda: None


def _refill(container: Any, undos: list[Restore], fill: Restore) -> None:
    container.clear()
    fill()
    for undo in undos:
        undo()


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
