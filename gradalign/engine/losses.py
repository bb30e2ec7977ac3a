"""What a loss_fn may return and do: input validation of every loss before it is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def loss_and_aux(result: Any) -> tuple[Any, Any]:
    """The pair that a loss_fn returns with has_aux=True."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"loss_fn: expected (loss, aux) with has_aux=True; got {type(result).__name__}; return a pair or drop has_aux"
        )
    return result


def differentiable_scalar(loss: object) -> None:
    """A loss is one real number with a graph."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"loss_fn: expected a scalar tensor; got {type(loss).__name__}; return the loss itself (has_aux=True for a pair)"
        )
    if type(loss) is not Tensor and hasattr(loss, "placements"):
        raise TypeError(
            "loss_fn: expected a loss that every rank has as a plain tensor; got a DTensor, as parallel losses return; return "
            "loss.full_tensor()"
        )
    if loss.numel() != 1:
        raise ValueError(f"loss_fn: expected a scalar tensor; got shape {tuple(loss.shape)}; reduce it with .mean()")
    if not loss.is_floating_point():
        raise TypeError(f"loss_fn: expected a real floating-point loss; got {loss.dtype}")
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn: expected a loss with a graph; got one that does not require grad; do not detach it, and do not call "
            "under torch.no_grad() or inference_mode()"
        )


def no_backward_inside(versions: list[int | None], grads: Sequence[Tensor | None]) -> None:
    """The loss_fn only computes the loss: no `.grad` appeared or changed in it."""
    if versions_of(grads) != versions:
        raise RuntimeError(
            "loss_fn: expected a function that computes the loss and leaves .grad alone; got one that called backward (or "
            "zero_grad); return the loss and let gradalign differentiate it"
        )


def versions_of(grads: Sequence[Tensor | None]) -> list[int | None]:
    """How often each `.grad` was written; None where there is none."""
    return [None if g is None else g._version for g in grads]


def dense_gradients(grads: Sequence[Tensor | None]) -> bool:
    """No gradient is sparse.

    Returns:
        Whether the memory of one holds its values with the other sign, as that of a number used as an imaginary part behind
        `conj()` does; kernels that write leave such tensors to torch, which refuses lists of them.
    """
    negated = False
    for g in grads:
        if g is not None:
            if g.layout is not torch.strided:
                raise TypeError(f"expected dense gradients; got {g.layout}; build embeddings with sparse=False")
            negated = negated or g.is_neg()
    return negated
