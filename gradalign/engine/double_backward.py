"""Refusal of operations that have no second derivative, for the schedules that differentiate twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import CheckpointFunction

from gradalign.engine.graph import nodes

# The code object that `once_differentiable` gives every backward.
ONCE = once_differentiable(lambda ctx: None).__code__

NO_SECOND_DERIVATIVE = ("not implemented", "does not require grad", "ouble backward", "differentiate twice")


@contextmanager
def twice_differentiable(name: str = "exact") -> Iterator[None]:
    """Says what to do where an operation has no second derivative."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_SECOND_DERIVATIVE):
            raise
        raise RuntimeError(
            f"{name}: expected twice differentiable operations; got: {error}; use eager attention (or "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or a method that needs no second derivative"
        ) from error


def no_refusal(grads: Iterable[Tensor]) -> None:
    """No operation that refuses to be differentiated twice is behind these gradients.

    `torch.autograd.grad` runs only what lies on a way to its inputs; the refusal of `once_differentiable` hangs on a leaf of
    its own, so that what depends on the parameters through such a function would be missing without a word.
    """
    if any(node.name() == "torch::autograd::Error" for node in nodes(grads)):
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")


def no_once_only(loss: Tensor) -> None:
    """The loss has second derivatives all the way."""
    if any(getattr(type(node), "_forward_cls", None) is CheckpointFunction for node in nodes([loss])):
        raise RuntimeError(
            "trying to differentiate twice a reentrant checkpoint, whose backward hides the parameters behind it; use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    name = once_only(loss)
    if name is not None:
        raise RuntimeError(f"trying to differentiate twice {name}, which was marked with @once_differentiable")


def once_only(loss: Tensor) -> str | None:
    """A function on the way of a loss whose backward cannot be differentiated, by name.

    Where the gradient that reaches it is a constant, torch differentiates twice and leaves its part out.
    """
    for node in nodes([loss]):
        backward = getattr(getattr(type(node), "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is ONCE:
            return node.name()
    return None
