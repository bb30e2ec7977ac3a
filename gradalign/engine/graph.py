"""What the graph behind a tensor says: which leaves it trains, and whether parameters are cast on their way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Parameter

LEAF = "torch::autograd::AccumulateGrad"
CAST = "ToCopyBackward0"
NARROW = (torch.bfloat16, torch.float16)


# What `once_differentiable` makes of every backward.
ONCE = once_differentiable(lambda ctx: None).__code__


class GraphInfo(NamedTuple):
    """Of a loss.

    Attributes:
        foreign_params: the parameters that it trains beside those asked for.
        casts_to_16_bit: whether a parameter is cast to 16 bits on its way into it, as autocast does wherever it is opened.
    """

    foreign_params: list[Parameter]
    casts_to_16_bit: bool


def nodes(roots: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graphs behind some tensors, once."""
    waiting, seen = [root.grad_fn for root in roots], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [following for following, _ in node.next_functions]


def inspect_graph(loss: Tensor, params: Iterable[Tensor]) -> GraphInfo:
    """Walk the graph of a loss; `params` are those that it may train."""
    known = {id(p) for p in params}
    foreign_params, casts_to_16_bit = [], False
    for node in nodes([loss]):
        if node.name() == LEAF:
            if isinstance(node.variable, Parameter) and id(node.variable) not in known:
                foreign_params.append(node.variable)
        elif node.name() == CAST and node._input_metadata[0].dtype in NARROW:
            sources = [source for source, _ in node.next_functions if source is not None and source.name() == LEAF]
            casts_to_16_bit = casts_to_16_bit or any(id(source.variable) in known for source in sources)
    return GraphInfo(foreign_params, casts_to_16_bit)


def once_only(loss: Tensor) -> str | None:
    """A function on the way of a loss whose backward cannot be differentiated, by name.

    Where the gradient that reaches it is a constant, torch differentiates twice and leaves its part out.
    """
    for node in nodes([loss]):
        backward = getattr(getattr(type(node), "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is ONCE:
            return node.name()
    return None
