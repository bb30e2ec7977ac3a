"""The processes that train one model together, as a step knows them.

Micro-batch i of a step is what all ranks have as their i-th: its loss and its gradient are the means over ranks.
`engine.data_parallel` and `engine.mesh` are the two kinds there are, `engine.distribution` finds which of them a model has; no
other module of the engine knows of other processes.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

SAME = 1e-6  # relative; what norms of one gradient may differ by between machines


class Ranks(ABC):
    """The processes that train one model together.

    Attributes:
        num: how many they are.
    """

    num: int

    def average(self, tensors: Iterable[Tensor], share: float) -> None:
        """Tensors of the size of parameters become their means over ranks, times a share, in place."""
        raise AssertionError("only where every rank has whole parameters")

    @abstractmethod
    def begin(self, active: bool) -> None:
        """A step begins: what all its passes share is made the same.

        Args:
            active: whether it has the term.
        """

    @abstractmethod
    def end(self, complete: bool) -> None:
        """A step is complete, or aborted: what was set for it is as the plain loop leaves it, or as before."""

    @abstractmethod
    def one_pass(self, more: bool, backward: bool = True) -> Any:
        """A context for one pass, forward and backward.

        Args:
            more: another pass into the same vector follows before anything reads it, so that the average over ranks may wait.
            backward: whether the loss is differentiated at all.
        """

    def parameters_are_read(self) -> None:  # noqa: B027
        """Parameters are about to be read, or were moved: no copy of theirs that torch keeps stays in use."""

    def leaves(self) -> Iterable[Tensor]:
        """Tensors that stand for parameters in autograd's graphs."""
        return ()

    @property
    def forward_dtypes(self) -> set[torch.dtype]:
        """The dtypes that torch casts parameters to for the forward."""
        return set()

    @property
    def reduce_dtypes(self) -> set[torch.dtype]:
        """The dtypes that torch casts gradients to before it reduces them."""
        return set()

    @property
    def devices(self) -> set[torch.device]:
        """Where the forward runs, beside where the parameters are."""
        return set()

    def local(self, tensors: Iterable[Any]) -> list[Any]:
        """What of some tensors this rank holds."""
        return list(tensors)

    def copies(self, params: Sequence[Tensor]) -> list[int]:
        """How many ranks hold each element of a parameter, where sums are added over ranks."""
        return [1] * len(params)

    def gradients(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """The `.grad` of every parameter, in its layout."""
        return [p.grad for p in params]

    def as_gradients(self, params: Sequence[Tensor], vector: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """A vector as what `.grad` can be."""
        return vector

    def placed(self, param: Tensor, t: Tensor) -> Tensor:
        """An entry of a vector in the shape of the whole parameter, with zeros where other ranks have it."""
        return t

    def total(self, sums: Tensor) -> Tensor:
        """Sums over the elements that this rank holds, added over ranks."""
        return sums

    def part(self, total: Tensor) -> Tensor:
        """What of a sum over all elements this rank adds, so that `total` is that sum again."""
        return total

    def total_and_mean(self, sums: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """`total` of some numbers and `mean` of others, in one reduction."""
        return self.total(sums), self.mean(own)

    @abstractmethod
    def _all_reduce(self, numbers: Tensor, op: Any) -> None:
        """Reduce a small tensor over the ranks, in place."""

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over ranks of a small tensor; the same bits on all of them."""
        total = numbers.clone()
        self._all_reduce(total, torch.distributed.ReduceOp.SUM)
        return total / self.num

    def anywhere(self, flag: bool, home: torch.device) -> bool:
        """Whether a flag is set on any rank; reads it back to the host."""
        found = torch.full((), float(flag), dtype=torch.float64, device=home)
        self._all_reduce(found, torch.distributed.ReduceOp.MAX)
        return bool(found)

    def same_request(self, request: Mapping[str, object], home: torch.device) -> None:
        """Every rank was asked for the same; reads back to the host.

        Args:
            request: by the name of the argument; compared by a checksum of its text.
            home: the device of the numbers.

        Raises:
            ValueError: names the argument in which they differ.
        """
        own = [zlib.crc32(repr(value).encode()) for value in request.values()]
        both = torch.tensor([*own, *(-number for number in own)], dtype=torch.float64, device=home)
        self._all_reduce(both, torch.distributed.ReduceOp.MAX)
        differing = [name for i, name in enumerate(request) if both[i] != -both[i + len(own)]]
        if differing:
            given = request[differing[0]]
            remedy = "cut as many" if isinstance(given, int) else "order micro-batches alike"
            raise ValueError(
                f"{differing[0]}: expected the same on all ranks, whose i-th micro-batches count as one; got "
                f"{given!r} on this rank and something else on another; {remedy} on all ranks"
            )

    def same_everywhere(self, params: Sequence[Tensor], grads: Sequence[Tensor | None], home: torch.device) -> None:
        """Gradients that every rank has a copy of are the same on all ranks; reads back to the host.

        Raises:
            RuntimeError: one is not.
        """
        norms = [torch.zeros((), device=home) if g is None else torch.linalg.vector_norm(g).to(home) for g in grads]
        own = torch.stack([norm.double() for norm in norms]).nan_to_num(0.0, 0.0, 0.0)
        both = torch.cat((own, -own))
        self._all_reduce(both, torch.distributed.ReduceOp.MAX)
        largest, smallest = both[: len(own)], -both[len(own) :]
        differing = (largest - smallest > SAME * largest).nonzero().flatten().tolist()
        if differing:
            shapes = {tuple(g.shape) for i in differing for g in (grads[i],) if g is not None}
            raise RuntimeError(
                f"expected gradients that are averaged over the ranks; got {len(differing)} that differ between them (shapes "
                f"{', '.join(map(str, sorted(shapes)[:3]))}); loss_fn has to call the wrapped module itself (ddp(x), not "
                "ddp.module(x)), and every trained parameter has to be one of those that the wrapper was made with"
            )


def group_is_up() -> bool:
    """Whether this process belongs to a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def no_other_wrappers(models: Iterable[nn.Module]) -> Iterator[None]:
    """Meanwhile no wrapper of several processes runs that is not among the models.

    Raises:
        RuntimeError: from its forward.
    """
    known = {id(m) for model in models for m in model.modules()}

    def look(module: nn.Module, _: object) -> None:
        if isinstance(module, DistributedDataParallel) and id(module) not in known:
            raise RuntimeError(
                "loss_fn: expected a call of the module that was given; got one of a DistributedDataParallel around it, which "
                "would average each pass without being asked; give the wrapper itself, GradAlign(ddp, ...)"
            )

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
