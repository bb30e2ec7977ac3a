"""What a training step notes in its trainer, metrics and counters, is taken back after a displaced pass."""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

CLONED = 2**16  # elements: a larger tensor is no metric; a write into it is refused instead of taken back
# Data that a module keeps in lists would take longer to walk, in every displaced pass, than the pass itself.
ENTERED = 2**10  # elements of a container, and containers and tensors in an attribute, whose contents are kept too
COPIED = 2**20  # elements of a list or dict; of a longer one only the length is kept
PLAIN = (bool, int, float, complex, str, bytes, type(None))
CONTAINERS = (dict, list, set, deque)
Restore = Callable[[], Any]


@contextmanager
def taken_back(owner: Any, besides: Collection[str] = ()) -> Iterator[None]:
    """Afterwards the numbers, strings, tensors and containers among the attributes of an object are as before.

    Containers keep their identity. Metrics of torchmetrics among its modules are included. A container of more than `ENTERED`
    elements gets these elements back; what is put into one of them is an error. So it is beyond `ENTERED` containers and
    tensors within an attribute. A list or dict of more than `COPIED` elements gets its length back.

    Args:
        owner: the object.
        besides: attributes that are left alone.

    Raises:
        RuntimeError: a large tensor was written in place, a long container became shorter, or one of too many containers and
            tensors changed.
    """
    owners = [owner, *(m for m in _modules(owner) if m is not owner and _is_metric(m))]
    restores = [_attributes(vars(o), besides if o is owner else ()) for o in owners]
    try:
        yield
    finally:
        _all(restores)


def _all(restores: Sequence[Restore]) -> None:
    """Every one of them, in turn, also after one that raises."""
    with ExitStack() as stack:
        for restore in reversed(restores):
            stack.callback(restore)


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
    noted = {name: value for name, value in values.items() if name not in hidden and _noted(value)}
    saved = {name: (value, _Saving(name, seen).of(value)) for name, value in noted.items()}
    others = {name: value for name, value in values.items() if name not in hidden and name not in saved}

    def restore() -> None:
        for name in [name for name, value in values.items() if name not in hidden and _noted(value)]:
            if name in others:
                values[name] = others[name]
            elif name not in saved:
                del values[name]
        for name, (value, _) in saved.items():
            values[name] = value
        _all([undo for _, undo in saved.values() if undo is not None])

    return restore


def _noted(value: Any) -> bool:
    return isinstance(value, (*PLAIN, Tensor, *CONTAINERS))


class _Saving:
    """Saves the contents of one attribute.

    Args:
        name: of the attribute.
        seen: identities of the containers that are saved already.
    """

    def __init__(self, name: str, seen: set[int]) -> None:
        self._name, self._seen = name, seen
        self._left = ENTERED  # containers and tensors that are still entered

    def of(self, value: Any) -> Restore | None:
        """What brings the contents of a value back; None where nothing has to, or it is done elsewhere."""
        if isinstance(value, Tensor):
            return _tensor(value, self._name)
        if not isinstance(value, CONTAINERS) or id(value) in self._seen:
            return None
        self._seen.add(id(value))
        if isinstance(value, set):
            members = set(value)
            return lambda: None if value == members else _refill_set(value, members)
        if len(value) > COPIED and not isinstance(value, deque):
            return self._length(value)
        inners = list(value.values()) if isinstance(value, dict) else list(value)
        keys = list(value) if isinstance(value, dict) else []
        undos = self._inside(inners)

        def restore() -> None:
            if isinstance(value, dict):
                _restore_dict(value, keys, inners)
            elif not _same(value, inners):
                value.clear()
                value.extend(inners)
            _all(undos)

        return restore

    def _inside(self, inners: list) -> list[Restore]:
        """The same for the elements of a container that have contents, or a look at those that are too many to save."""
        undos: list[Restore] = []
        others = []
        for inner in inners:
            if not isinstance(inner, (Tensor, *CONTAINERS)):
                continue
            if len(inners) > ENTERED or not self._left:
                others.append(inner)
                continue
            self._left -= 1
            undo = self.of(inner)
            undos += [] if undo is None else [undo]
        return [*undos, self._unchanged(others)] if others else undos

    def _unchanged(self, others: list) -> Restore:
        """What notices that something was put into these, or taken out, or that a tensor of them was written."""
        before = _contents(others)

        def check() -> None:
            if _contents(others) != before:
                raise RuntimeError(
                    f"training_step: expected what more than {ENTERED} containers and tensors hold to stay as it is in a "
                    f"displaced pass; got a change within {self._name}; make it where aligner.displaced is False"
                )

        return check

    def _length(self, value: list | dict) -> Restore:
        """What takes out the elements that were added at the end."""
        length = len(value)

        def restore() -> None:
            if isinstance(value, list):
                del value[length:]
            else:
                while len(value) > length:
                    _plain_class(value).popitem(value)
            if len(value) < length:
                raise RuntimeError(
                    f"training_step: expected containers of more than {COPIED} elements to keep them in a displaced pass; got "
                    f"{length - len(value)} of {length} taken out of {self._name}; do it where aligner.displaced is False"
                )

        return restore


def _contents(values: list) -> list[int]:
    """What changes with the length of one of the containers and with a write into one of the tensors."""
    return [_version(v) if isinstance(v, Tensor) else len(v) for v in values]


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def _refill_set(value: set, members: set) -> None:
    value.clear()
    value.update(members)


def _restore_dict(value: dict, keys: list, inners: list) -> None:
    """By the methods of the plain class: those of classes derived from it count (Counter) or refuse (ModelOutput)."""
    if _same(value, keys) and _same(value.values(), inners):
        return
    kind = _plain_class(value)
    kind.clear(value)
    for key, inner in zip(keys, inners, strict=True):
        kind.__setitem__(value, key, inner)


def _plain_class(value: dict) -> type[dict]:
    return OrderedDict if isinstance(value, OrderedDict) else dict


def _same(now: Iterable[Any], before: list) -> bool:
    """Whether these are the same objects in the same order."""
    found = list(now)
    return len(found) == len(before) and all(map(operator.is_, found, before))


def _tensor(value: Tensor, name: str) -> Restore | None:
    if value.is_inference() or value.requires_grad:
        return None
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
