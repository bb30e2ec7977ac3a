"""What the autograd graph of a loss shows: the leaves that it trains, and whether parameters are cast to 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

LEAF = "torch::autograd::AccumulateGrad"
CAST = "ToCopyBackward0"
NARROW = (torch.bfloat16, torch.float16)


class GraphInfo(NamedTuple):
    """What the graph of one loss shows.

    Attributes:
        foreign_params: parameters that the loss trains and that are not the model's.
        casts_to_16_bit: whether a parameter is cast to 16 bits before it is used, as under autocast, wherever that is opened.
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
    """Walk the graph of a loss; `params` are the parameters that it may train."""
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
