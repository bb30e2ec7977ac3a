"""Counts what processes send each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Collectives(TorchDispatchMode):
    """Counts torch's collectives by name, and the elements that they are given, while it is entered.

    Attributes:
        counts: calls.
        elements: of the largest tensor of each call, added up.
        reads: of a number back to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()
        self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        if function.namespace == "c10d":
            name = function._schema.name.split("::")[1]
            self.counts[name] += 1
            self.elements[name] += max((t.numel() for t in tree_leaves(args) if hasattr(t, "numel")), default=0)
        return function(*args, **(kwargs or {}))


@contextmanager
def averaged_by(average: Callable, model: DistributedDataParallel) -> Iterator[None]:
    """Meanwhile a wrapper averages gradients by a function of group and tensor that returns a future.

    `allreduce_hook` is the only hook that gradalign accepts, so that is registered, and what it calls is replaced.
    """
    model.register_comm_hook(None, default_hooks.allreduce_hook)
    with patch.object(default_hooks, "_allreduce_fut", average):
        yield
