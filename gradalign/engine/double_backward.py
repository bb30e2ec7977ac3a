"""Refusal of operations that have no second derivative, for the schedules that differentiate twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import CheckpointFunction

from gradalign.engine.graph import nodes

# The code object that `once_differentiable` gives every backward.
ONCE = once_differentiable(lambda ctx: None).__code__

WEIGHT_NORM = "WeightNormInterfaceBackward"  # how the names of its nodes begin
AOT = "._aot_autograd."  # in the name of the module that has the functions of torch.compile, but for backend="eager"

WRITTEN_SINCE = "modified by an inplace operation"  # torch's words
NO_SECOND_DERIVATIVE = ("not implemented", "does not require grad", "ouble backward", "differentiate twice")


@contextmanager
def twice_differentiable(name: str = "exact") -> Iterator[None]:
    """Says what to do where an operation has no second derivative, or a later forward wrote into an earlier graph."""
    try:
        yield
    except RuntimeError as error:
        if WRITTEN_SINCE in str(error):
            raise RuntimeError(
                f"{name}: expected graphs that stay as they are until all passes are done; got: {error}; let the forward make "
                "a buffer anew that the loss depends on (self.scale = 0.9 * self.scale + ...) instead of writing into it, and "
                "write into no parameter; or use a method that needs no second derivative"
            ) from error
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


def no_once_only(loss: Tensor, among: Iterable[Tensor] | None = None) -> None:
    """The loss has second derivatives all the way, and torch has them right.

    Args:
        loss: the loss.
        among: the leaves whose gradients are differentiated; None: any.
    """
    measured = None if among is None else set(map(id, among))
    for node in nodes([loss]):
        found = _obstacle(node, measured)
        if found is not None:
            raise RuntimeError(f"trying to differentiate twice {found}")


def _obstacle(node: Any, measured: set[int] | None) -> str | None:
    """Why the backward of a node cannot be differentiated, None where it can.

    - Where the gradient that reaches a function of `once_differentiable` is a constant, torch differentiates twice and leaves
      its part out.
    - What torch.compile makes refuses it late, or in words of its own ("donated buffers").
    - The fused kernel of weight_norm saves the norm of the direction, which torch takes for a constant in the second
      derivative: right where the direction is one. Without the kernel, as for the norm of a whole tensor, there is no such
      node.
    """
    function = getattr(type(node), "_forward_cls", None)
    if function is CheckpointFunction:
        return (
            "a reentrant checkpoint, whose backward hides the parameters behind it; use "
            "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )
    if AOT in getattr(function, "__module__", ""):
        return "what torch.compile made; leave it out, or use torch.compile(..., backend='eager')"
    if getattr(getattr(function, "backward", None), "__code__", None) is ONCE:
        return f"{node.name()}, which was marked with @once_differentiable"
    if node.name().startswith(WEIGHT_NORM) and _is_differentiated(node.next_functions[0][0], measured):
        return (
            "weight_norm, whose second derivative in torch is wrong; write the normalisation out, as a parametrization that "
            "returns g * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)"
        )
    return None


def _is_differentiated(node: Any, measured: set[int] | None) -> bool:
    """Whether what a node stands for is trained, and its gradient differentiated again as far as that can be told."""
    leaf = getattr(node, "variable", None)
    return node is not None and (measured is None or leaf is None or id(leaf) in measured)
