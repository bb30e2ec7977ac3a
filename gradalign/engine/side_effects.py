"""Writes of a loss_fn that a displaced pass would see: into its micro-batch, and into frozen parameters."""

from __future__ import annotations

import sys
from collections import UserDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PLAIN = (str, bytes, int, float)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes


class Before(NamedTuple):
    """What there is before a base pass.

    Attributes:
        tensors: those of its micro-batch.
        versions: theirs.
        watched: versions of the parameters that are compared.
        places: aliases of these parameters; none where their values are not compared.
        sums: of the bits of these parameters; None where they are not compared.
    """

    tensors: list[Tensor]
    versions: list[int]
    watched: list[int]
    places: list[Tensor]
    sums: list[int | None] | None


class SideEffects:
    """Compares what a loss_fn must leave alone before and after a base pass.

    Versions show a write into a parameter, except one through `.data`. Where values are compared, parameters that moved in
    memory are compared with what they were, and around the first pass the sums of the bits of all are compared: two reads
    of the parameters, no copy, and a wait for the device.

    Args:
        modules: the models.
        frozen: their parameters that do not require grad. Those of an embedding with `max_norm` are left out: it writes the
            same values in every pass.
        look_into_batches: whether micro-batches are looked at, which takes a walk through each.
        trained: the parameters that require grad, where those that get no gradient are to be left alone too.
        compare_values: whether writes that raise no version are looked for.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        frozen: Sequence[Tensor],
        look_into_batches: bool,
        trained: Sequence[Tensor] = (),
        compare_values: bool = False,
    ) -> None:
        self._modules = list(modules)
        renormalised = set(map(id, renormalised_weights(self._modules))) if look_into_batches else set()
        self._frozen, self._trained = (
            [p for p in params if not p.is_inference() and id(p) not in renormalised] for params in (frozen, trained)
        )
        self._watched = [*self._frozen, *self._trained]
        self.inspects = self._look_into_batches = look_into_batches
        self._compare_values = compare_values
        self._first = True
        self._written: list[Tensor] = []

    @property
    def looks(self) -> bool:
        """Whether there is anything that it compares."""
        return self._look_into_batches or bool(self._watched)

    def before(self, micro_batch: Any) -> Before:
        """What there is before a pass."""
        tensors = self._tensors(micro_batch)
        places = [p.detach() for p in self._watched] if self._compare_values else []
        sums = _sums(places) if places and self._first else None
        self._first = False
        return Before(tensors, _versions(tensors), _versions(self._watched), places, sums)

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
        changed = self._changed(before)
        num_frozen = len(self._frozen)
        if any(i < num_frozen for i in changed):
            raise RuntimeError(
                "loss_fn: expected frozen parameters to be left alone, since a displaced pass would use other values than its "
                f"base pass; got a write into {self._names([self._frozen[i] for i in changed if i < num_frozen])} (which "
                "remains); move the update, a momentum encoder's or an EMA's, out of loss_fn, after optimizer.step()"
            )
        self._written += [self._watched[i] for i in changed]

    def check_trained(self, params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """No parameter that requires grad and got no gradient was written in a base pass: it serves as a frozen one.

        Args:
            params: those that require grad.
            grads: theirs, after all passes.

        Raises:
            RuntimeError: names those that were written.
        """
        written = set(map(id, self._written))
        moved = [p for p, g in zip(params, grads, strict=True) if g is None and id(p) in written]
        if moved:
            raise RuntimeError(
                "loss_fn: expected parameters without a gradient to be left alone, since a displaced pass would use other "
                f"values than its base pass; got a write into {self._names(moved)} (which remains); move the update, a "
                "momentum encoder's or an EMA's, out of loss_fn, after optimizer.step(), and set requires_grad_(False)"
            )

    def _changed(self, before: Before) -> list[int]:
        """Positions of the watched parameters that a pass has written."""
        changed = {i for i, (p, v) in enumerate(zip(self._watched, before.watched, strict=True)) if p._version != v}
        pairs = list(zip(self._watched, before.places, strict=True)) if before.places else []
        changed |= {i for i, (p, place) in enumerate(pairs) if _other_values(p, place)}
        if before.sums is not None:  # of the same memory: a parameter that moved was compared above
            sums = zip(before.sums, _sums(before.places), strict=True)
            changed |= {i for i, (was, now) in enumerate(sums) if None not in (was, now) and was != now}
        return sorted(changed)

    def _tensors(self, micro_batch: Any) -> list[Tensor]:
        if not self._look_into_batches:
            return []
        return [t for t in tensors_of(micro_batch, set()) if not t.is_inference()]

    def _names(self, params: Iterable[Tensor]) -> str:
        written = set(map(id, params))
        names = [name for module in self._modules for name, p in module.named_parameters() if id(p) in written]
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def no_tensor_filled_again(micro_batches: Sequence[Any]) -> None:
    """No two micro-batches that an iterator gave consist of the same tensors or arrays, which it then filled with the last one.

    Raises:
        ValueError: says which two.
    """
    numpy = sys.modules.get("numpy")  # without it there are no arrays
    kinds = (Tensor,) if numpy is None else (Tensor, numpy.ndarray)
    seen: dict[tuple[object, ...], int] = {}
    for number, micro_batch in enumerate(micro_batches, 1):
        found = list(tensors_of(micro_batch, set(), kinds))
        if not all(
            isinstance(t, Tensor) for t in found
        ):  # an array may be a table that all share, beside numbers or names
            found = list(tensors_of(micro_batch, set(), (*kinds, *PLAIN)))
        ids = tuple(value if isinstance(value, PLAIN) else id(value) for value in found)
        if found and ids in seen:
            raise ValueError(
                f"micro_batches: expected tensors of their own for every micro-batch of an iterator; got the same in "
                f"{seen[ids]} and {number}, which all hold the last micro-batch where they are filled again; yield clones "
                "or copies, or pass a list where the same micro-batch is meant"
            )
        seen[ids] = number


def tensors_of(value: Any, seen: set[int], kinds: tuple[type, ...] = (Tensor,)) -> Iterator[Any]:
    """The tensors of a micro-batch: in nested dicts, lists and tuples, and in the attributes of an object.

    Other mappings are left alone: reading them may compute something.

    Args:
        value: the micro-batch, or a part of it.
        seen: identities of the containers that were walked.
        kinds: what counts as a tensor.
    """
    if isinstance(value, kinds):
        yield value
    elif not isinstance(value, PLAIN) and id(value) not in seen:
        seen.add(id(value))
        for inner in _parts(value, kinds):
            yield from tensors_of(inner, seen, kinds)


def _parts(value: Any, kinds: tuple[type, ...]) -> Iterable[Any]:
    if isinstance(value, UserDict):
        return _parts(value.data, kinds)
    if isinstance(value, dict):
        return list(dict.values(value))
    if isinstance(value, (list, tuple)):
        # A long list of numbers has no tensors, and is not walked.
        return value if any(isinstance(inner, (*kinds, dict, list, tuple)) for inner in value[:8]) else value[:8]
    if hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)) and not callable(value):
        return [inner for inner in vars(value).values() if isinstance(inner, (*kinds, dict, UserDict, list, tuple))]
    return ()


def renormalised_weights(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The weights that an embedding renormalises in its forward (`max_norm`)."""
    inner = (m for module in modules for m in module.modules() if getattr(m, "max_norm", None) is not None)
    return [weight for weight in (getattr(m, "weight", None) for m in inner) if isinstance(weight, Tensor)]


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [t._version for t in tensors]


def _readable(t: Tensor) -> bool:
    """Whether a tensor has values that can be read: no shard, no quantised subclass, no placeholder, no memory given back."""
    plain = type(t) is Tensor and t.layout is torch.strided and t.is_floating_point() and t.device.type != "meta"
    return plain and t.untyped_storage().nbytes() > 0


@torch.no_grad()
def _other_values(param: Tensor, place: Tensor) -> bool:
    """Whether a parameter is elsewhere in memory and has other values there.

    One whose memory was given back, or is on another device, was moved by something that manages memory.
    """
    now = param.detach()
    if not (_readable(now) and _readable(place)) or now.data_ptr() == place.data_ptr():
        return False
    same_kind = now.shape == place.shape and now.dtype == place.dtype and now.device == place.device
    return same_kind and not torch.equal(
        now.view(INTEGERS[now.element_size()]), place.view(INTEGERS[now.element_size()])
    )


@torch.no_grad()
def _sums(tensors: Sequence[Tensor]) -> list[int | None]:
    """The sum of the bits of every tensor, None where it cannot be read; one wait for each device."""
    sums: list[int | None] = [None] * len(tensors)
    devices: dict[torch.device, list[int]] = {}
    for i, t in enumerate(tensors):
        if _readable(t) and t.numel():
            devices.setdefault(t.device, []).append(i)
    for here in devices.values():
        found = torch.stack([_bits(tensors[i]).sum(dtype=torch.int64) for i in here]).tolist()
        for i, value in zip(here, found, strict=True):
            sums[i] = value
    return sums


def _bits(t: Tensor) -> Tensor:
    """The memory of a tensor as integers, as wide as it can be read: a NaN is then equal to itself."""
    size = t.element_size()
    if t.is_contiguous() and t.nbytes % 8 == 0 and t.storage_offset() * size % 8 == 0:
        return t.view(-1).view(torch.int64)
    return t.view(INTEGERS[size])
