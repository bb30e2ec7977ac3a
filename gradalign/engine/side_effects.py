"""Writes of a loss_fn that a displaced pass would see: into its micro-batch, and into frozen parameters."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Before(NamedTuple):
    """What there is before a base pass: the tensors of its micro-batch, their versions, and those of the frozen parameters."""

    tensors: list[Tensor]
    versions: list[int]
    frozen: list[int]


class SideEffects:
    """Compares what a loss_fn must leave alone before and after a base pass.

    Args:
        modules: the models.
        frozen: their parameters that do not require grad. Those of an embedding with `max_norm` are left out: it writes the
            same values in every pass.
        look_into_batches: whether micro-batches are looked at, which takes a walk through each.
    """

    def __init__(self, modules: Iterable[nn.Module], frozen: Sequence[Tensor], look_into_batches: bool) -> None:
        self._modules = list(modules)
        renormalised = _renormalised(self._modules) if look_into_batches else frozenset()
        self._frozen = [p for p in frozen if not p.is_inference() and id(p) not in renormalised]
        self._look_into_batches = look_into_batches

    @property
    def looks(self) -> bool:
        """Whether there is anything that it compares."""
        return self._look_into_batches or bool(self._frozen)

    def before(self, micro_batch: Any) -> Before:
        """What there is before a pass."""
        tensors = self._tensors(micro_batch)
        return Before(tensors, _versions(tensors), _versions(self._frozen))

    def check(self, before: Before, micro_batch: Any) -> None:
        """The pass has changed nothing of it.

        Raises:
            RuntimeError: names what was written, and where the write belongs.
        """
        now = self._tensors(micro_batch)
        if list(map(id, now)) != list(map(id, before.tensors)) or _versions(now) != before.versions:
            pairs = zip(before.tensors, before.versions, strict=True)
            written = next((f"of shape {tuple(t.shape)}" for t, v in pairs if t._version != v), "that it replaced")
            raise RuntimeError(
                "loss_fn: expected a micro-batch that is left as it is, since a displaced pass uses it again; got a write "
                f"into a tensor {written}; clone it first (x = batch['x'].clone()), use an operation that is not in place, and "
                "keep results in variables of loss_fn"
            )
        if _versions(self._frozen) != before.frozen:
            raise RuntimeError(
                "loss_fn: expected frozen parameters to be left alone, since a displaced pass would use other values than its "
                f"base pass; got a write into {self._names(before.frozen)} (which remains); move the update, a momentum "
                "encoder's or an EMA's, out of loss_fn, after optimizer.step()"
            )

    def _tensors(self, micro_batch: Any) -> list[Tensor]:
        if not self._look_into_batches:
            return []
        return [t for t in tensors_of(micro_batch, set()) if not t.is_inference()]

    def _names(self, versions: Sequence[int]) -> str:
        changed = {id(p) for p, version in zip(self._frozen, versions, strict=True) if p._version != version}
        names = [name for module in self._modules for name, p in module.named_parameters() if id(p) in changed]
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def tensors_of(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """The tensors of a micro-batch: in nested dicts, lists and tuples, and in the attributes of an object.

    Other mappings are left alone: reading them may compute something.

    Args:
        value: the micro-batch, or a part of it.
        seen: identities of the containers that were walked.
    """
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, (str, bytes, int, float)) and id(value) not in seen:
        seen.add(id(value))
        for inner in _parts(value):
            yield from tensors_of(inner, seen)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, UserDict):
        return _parts(value.data)
    if isinstance(value, dict):
        return list(dict.values(value))
    if isinstance(value, (list, tuple)):
        # A long list of numbers has no tensors, and is not walked.
        return value if any(isinstance(inner, (Tensor, dict, list, tuple)) for inner in value[:8]) else value[:8]
    if hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and not callable(value):
        return [inner for inner in vars(value).values() if isinstance(inner, (Tensor, dict, UserDict, list, tuple))]
    return ()


def _renormalised(modules: Iterable[nn.Module]) -> frozenset[int]:
    """Identities of the weights that an embedding renormalises in its forward."""
    inner = (m for module in modules for m in module.modules())
    return frozenset(id(m.weight) for m in inner if getattr(m, "max_norm", None) is not None and hasattr(m, "weight"))


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [t._version for t in tensors]
