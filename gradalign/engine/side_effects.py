"""Writes of a loss_fn that a displaced pass would see: into its micro-batch, and into frozen parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Contents(NamedTuple):
    """Versions and addresses of some tensors."""

    versions: list[int]
    addresses: list[int]


class SideEffects:
    """Compares what a loss_fn must leave alone before and after a base pass.

    Args:
        modules: the models.
        frozen: their parameters that do not require grad.
    """

    def __init__(self, modules: Iterable[nn.Module], frozen: Sequence[Tensor]) -> None:
        self._modules = modules
        self._frozen = [p for p in frozen if not p.is_inference()]

    def before(self, micro_batch: Any) -> tuple[list[Tensor], Contents, Contents]:
        """What there is before a pass."""
        tensors = [t for t in tensors_of(micro_batch) if not t.is_inference()]
        return tensors, contents(tensors), contents(self._frozen)

    def check(self, before: tuple[list[Tensor], Contents, Contents]) -> None:
        """The pass has changed nothing of it.

        Raises:
            RuntimeError: names what was written, and where the write belongs.
        """
        tensors, batch, frozen = before
        if contents(tensors) != batch:
            pairs = zip(tensors, zip(*batch, strict=True), zip(*contents(tensors), strict=True), strict=True)
            written = next(t for t, then, now in pairs if then != now)
            raise RuntimeError(
                "loss_fn: expected a micro-batch that is left as it is, since a displaced pass uses it again; got a write "
                f"into a tensor of shape {tuple(written.shape)}; clone it first (x = batch['x'].clone()) or use an operation "
                "that is not in place"
            )
        if contents(self._frozen) != frozen:
            raise RuntimeError(
                "loss_fn: expected frozen parameters to be left alone, since a displaced pass would use other values than its "
                f"base pass; got a write into {self._names(frozen)} (which remains); move the update, a momentum encoder's or "
                "an EMA's, out of loss_fn, after optimizer.step()"
            )

    def _names(self, before: Contents) -> str:
        now = contents(self._frozen)
        pairs = zip(zip(*before, strict=True), zip(*now, strict=True), strict=True)
        changed = {id(p) for p, (a, b) in zip(self._frozen, pairs, strict=True) if a != b}
        names = [name for module in self._modules for name, p in module.named_parameters() if id(p) in changed]
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def contents(tensors: Sequence[Tensor]) -> Contents:
    """Versions and addresses as they are now."""
    return Contents(_versions(tensors), [_address(t) for t in tensors])


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors of a micro-batch: in nested mappings, lists and tuples, and in the attributes of an object."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_of(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from tensors_of(inner)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and not callable(value):
        for inner in vars(value).values():
            yield from _plain_tensors_of(inner)


def _plain_tensors_of(value: Any) -> Iterator[Tensor]:
    """As `tensors_of`, without looking into further objects."""
    if isinstance(value, (Tensor, Mapping, list, tuple)):
        yield from tensors_of(value)


def _address(t: Tensor) -> int:
    """Where a tensor is; 0 for one without memory of its own: sparse, or a subclass that wraps others."""
    try:
        return t.data_ptr() if t.layout is torch.strided else 0
    except RuntimeError:
        return 0


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [t._version for t in tensors]
