"""Micro-batches: splitting one large batch, and copies of its parts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any

import torch
from torch import Tensor

from gradalign.engine import validation


def chunk(batch: Any, k: int) -> list[Any]:
    """Split one batch into k micro-batches along dimension 0, as `torch.tensor_split` does.

    The first `rows % k` micro-batches have one row more than the others; the mean of their mean losses is then not the mean
    over all rows (use `reduction="sum"` with losses that carry their own share of the rows where that matters).

    Args:
        batch: a tensor, or nested mappings (`BatchEncoding` too), lists and tuples of tensors with the same first dimension.
            Anything else in it, 0-dim tensors included, goes to every micro-batch as it is.
        k: the number of micro-batches.

    Returns:
        k batches of the same structure, their tensors views of the given ones.

    Raises:
        ValueError: no tensors, fewer than k rows, tensors with different numbers of rows, or what looks like a list of samples:
            more tensors of one shape than rows, or mappings, or tuples, that are all alike.
        TypeError: a NumPy array with as many rows as the tensors, or without any; a sparse or nested tensor.

    Examples:
        >>> import torch
        >>> [part["x"].shape[0] for part in chunk({"x": torch.zeros(5, 2)}, 2)]
        [3, 2]
    """
    validation.count("k", k, least=1)
    _no_uncollated_samples(batch)
    _no_list_of_samples(batch)
    leaves = list(_leaves(batch))
    _no_odd_layouts(leaves)
    rows = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    _no_arrays(leaves, rows)
    if len(rows) != 1:
        raise ValueError(f"chunk: expected tensors with one common number of rows; got {sorted(rows) or 'no tensor'}")
    if (num_rows := rows.pop()) < k:
        raise ValueError(f"chunk: expected at least k = {k} rows; got {num_rows}; use a smaller k or a larger batch")
    return [_part(batch, k, i) for i in range(k)]


def shallow_copy(micro_batch: Any) -> Any:
    """A shallow copy of a mapping or list, so that a loss_fn that pops keys can be called twice; anything else as it is."""
    return copy.copy(micro_batch) if is_mutable(micro_batch) else micro_batch


def is_mutable(micro_batch: Any) -> bool:
    """Whether a micro-batch is a mapping or list that a loss_fn could change."""
    return isinstance(micro_batch, (MutableMapping, MutableSequence))


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        for value in batch.values():
            yield from _leaves(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from _leaves(value)
    else:
        yield batch


def _no_odd_layouts(leaves: list[Any]) -> None:
    """Every tensor can be cut into views."""
    for leaf in leaves:
        if isinstance(leaf, Tensor) and (leaf.is_nested or leaf.layout is not torch.strided):
            kind = "a nested tensor" if leaf.is_nested else str(leaf.layout)
            raise TypeError(
                f"chunk: expected dense tensors; got {kind}; make the micro-batches yourself and pass the list"
            )


def _no_arrays(leaves: list[Any], rows: set[int]) -> None:
    """No NumPy array looks as if it were to be cut: each would go to every micro-batch as a whole."""
    for leaf in leaves:
        if type(leaf).__module__ == "numpy" and leaf.shape and (not rows or leaf.shape[0] in rows):
            raise TypeError(
                f"chunk: expected tensors; got a NumPy array of shape {leaf.shape}, which would go to every micro-batch as a "
                "whole; convert it with torch.from_numpy"
            )


def _no_uncollated_samples(batch: Any) -> None:
    """The batch is no list of samples, each a mapping or tuple of its own: they would be cut instead of the list."""
    if not isinstance(batch, list) or len(batch) < 2:
        return
    first = batch[0]
    if all(isinstance(sample, Mapping) for sample in batch):
        alike = all(sample.keys() == first.keys() for sample in batch)
    elif all(isinstance(sample, (list, tuple)) for sample in batch):
        alike = len(first) > 1 and len({tuple(map(_kind, sample)) for sample in batch}) == 1
    else:
        return
    if alike:
        raise ValueError(
            f"chunk: expected tensors with the samples along dimension 0; got a list of {len(batch)} "
            f"{type(first).__name__}s that are all alike, which looks like a list of samples; collate first, or slice the "
            "list: [samples[i::k] for i in range(k)]; pass a tuple if each is to be cut along dimension 0"
        )


def _kind(value: Any) -> object:
    return (value.dtype, value.dim()) if isinstance(value, Tensor) else type(value)


def _no_list_of_samples(batch: Any) -> None:
    """No list in the batch has its samples as elements: they would be cut instead of the list."""
    if isinstance(batch, Mapping):
        for value in batch.values():
            _no_list_of_samples(value)
    elif isinstance(batch, (list, tuple)):
        shapes = {t.shape if isinstance(t, Tensor) else None for t in batch}
        shape = shapes.pop() if len(shapes) == 1 else None
        if isinstance(batch, list) and shape and len(batch) > max(1, shape[0]):
            raise ValueError(
                f"chunk: expected tensors with the samples along dimension 0; got a list of {len(batch)} tensors of shape "
                f"{tuple(shape)}, which looks like a list of samples; stack them, chunk(torch.stack(batch), k), or pass a "
                "tuple if each is to be cut along dimension 0"
            )
        for value in batch:
            _no_list_of_samples(value)


def _part(batch: Any, k: int, i: int) -> Any:
    if isinstance(batch, Tensor):
        return batch.tensor_split(k)[i] if batch.dim() else batch
    if isinstance(batch, MutableMapping):
        part = copy.copy(batch)
        for key, value in batch.items():
            part[key] = _part(value, k, i)
        return part
    if isinstance(batch, Mapping):
        return type(batch)({key: _part(value, k, i) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_part(value, k, i) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(_part(value, k, i) for value in batch)
    return batch
