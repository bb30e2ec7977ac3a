"""`fully_shard` and `parallelize_module`: every rank has its shards of the parameters."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.engine import torch_internals
from gradalign.engine.ranks import Ranks


class Mesh(Ranks):
    """`fully_shard` and `parallelize_module`: parameters are DTensors on a device mesh.

    All work is done on what this rank holds. A sum over all elements is the sum over ranks of what each holds, divided by the
    number of ranks that hold the same: this covers uneven and empty shards, replicas and plain parameters.

    A gradient is reduced in every pass: what `fully_shard` holds back goes into whichever vector comes next. Its gathered
    copies of parameters are let go whenever parameters are read or have been moved.

    Args:
        modules: the models.
        params: their parameters; None: all of the modules'.

    Raises:
        ValueError: a mixture of parameters that nobody would average.
    """

    def __init__(self, modules: Sequence[nn.Module], params: Sequence[Tensor] | None = None) -> None:
        from torch.distributed.fsdp import FSDPModule

        inner = {id(m): m for model in modules for m in model.modules()}
        self._sharded: list[Any] = [m for m in inner.values() if isinstance(m, FSDPModule)]
        if self._sharded and not torch_internals.can_begin_anew():
            raise ValueError(
                "model: expected a torch whose fully_shard begins anew after an exception (reset_iter_state, torch 2.13); "
                f"got {torch.__version__}; update torch, or use DistributedDataParallel"
            )
        self.parameters_are_read()
        params = [p for model in modules for p in model.parameters()] if params is None else params
        meshes = [mesh for p in params for mesh in (getattr(p, "device_mesh", None),) if mesh is not None]
        self._mesh = max(meshes, key=lambda mesh: mesh.size())
        self.num = self._mesh.size()
        if self._sharded and any(p.requires_grad and not hasattr(p, "placements") for p in params):
            raise ValueError(
                "model: expected trained parameters that are all sharded; got some that fully_shard was told to ignore, whose "
                "gradients nobody would average; freeze them, or shard them too"
            )

    def begin(self, active: bool) -> None:
        """Nothing is left of an earlier backward, whether or not the step has the term.

        Raises:
            ValueError: gradients that `fully_shard` holds back; a module inside the one that it was applied to last.
        """
        if torch_internals.holds_back(self._sharded):
            raise ValueError(
                "expected no gradients from before the step; got some that fully_shard holds back "
                "(set_requires_gradient_sync(False)), which would be added to the first vector; end that accumulation first"
            )
        if self._sharded and all(torch_internals.is_root(m) is False for m in self._sharded):
            raise ValueError(
                "model: expected the module that fully_shard was applied to last, the root; got one inside it; give the root"
            )

    def end(self, complete: bool) -> None:
        """After an exception: gathered copies and what was held back are let go, and the next forward begins anew."""
        if not complete:
            self._begin_anew()

    @contextmanager
    def one_pass(self, more: bool, backward: bool = True) -> Iterator[None]:
        """Reduce, whatever the user's `set_requires_gradient_sync` says."""
        with torch_internals.reducing(self._sharded):
            yield
            if not backward:
                self._begin_anew()

    def parameters_are_read(self) -> None:
        """Gathered copies are let go, also where the user keeps them, and parameters are the shards again."""
        for module in self._sharded:
            module.reshard()

    def leaves(self) -> Iterable[Tensor]:
        """The gathered parameters."""
        return torch_internals.gathered_params(self._sharded)

    @property
    def forward_dtypes(self) -> set[torch.dtype]:
        """Those of the mixed precision policies."""
        return torch_internals.forward_dtypes(self._sharded)

    @property
    def reduce_dtypes(self) -> set[torch.dtype]:
        """Those of the mixed precision policies."""
        return torch_internals.reduce_dtypes(self._sharded)

    @property
    def devices(self) -> set[torch.device]:
        """That of the mesh: parameters may be offloaded to the CPU."""
        kind = self._mesh.device_type
        return set() if kind == "cpu" else {torch.device(kind, torch.get_device_module(kind).current_device())}

    def local(self, tensors: Iterable[Any]) -> list[Any]:
        """The shards."""
        return list(map(torch_internals.held, tensors))

    def copies(self, params: Sequence[Tensor]) -> list[int]:
        """Ranks, divided by the number of different shards."""
        return [self.num // _num_shards(p) for p in params]

    @torch.no_grad()
    def gradients(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Pending sums, as SequenceParallel leaves, are reduced."""
        for p in params:
            grad: Any = p.grad
            if hasattr(grad, "placements") and grad.placements != p.placements:  # type: ignore[attr-defined]
                p.grad = grad.redistribute(p.device_mesh, p.placements)  # type: ignore[attr-defined]
        return [p.grad for p in params]

    @torch.no_grad()
    def as_gradients(self, params: Sequence[Any], vector: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Shards as DTensors."""
        return [
            t if t is None or hasattr(t, "placements") or not hasattr(p, "placements") else _like(p, t)
            for p, t in zip(params, vector, strict=True)
        ]

    def placed(self, param: Any, t: Any) -> Tensor:
        """Where the shard is in the parameter."""
        if not hasattr(param, "placements"):
            return t
        (shard,) = self.local([t])
        whole = torch.zeros(param.shape, dtype=shard.dtype, device=shard.device)
        if shard.numel():
            whole[torch_internals.local_slices(param)] = shard
        return whole

    def largest(self, numbers: Tensor) -> Tensor:
        """The largest of every rank's numbers."""
        found = numbers.clone()
        self._all_reduce(found, torch.distributed.ReduceOp.MAX)
        return found

    def total(self, sums: Tensor) -> Tensor:
        """One reduction over the mesh."""
        found = sums.clone()
        self._all_reduce(found, torch.distributed.ReduceOp.SUM)
        return found

    def part(self, total: Tensor) -> Tensor:
        """Its share."""
        return total / self.num

    def total_and_mean(self, sums: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The mean is the sum of shares."""
        sizes = [sums.numel(), own.numel()]
        first, second = self.total(torch.cat((sums, own / self.num))).split(sizes)
        return first, second

    def same_everywhere(self, params: Sequence[Any], grads: Sequence[Tensor | None], home: torch.device) -> None:
        """Only parameters that every rank has a copy of can differ."""
        whole = [i for i, p in enumerate(params) if _num_shards(p) == 1]
        if whole:
            held = self.local(grads[i] for i in whole)
            super().same_everywhere([params[i] for i in whole], held, home)

    def layouts(self, params: Sequence[Any]) -> list[Hashable]:
        """What parameters have in common that are sharded alike; the same for the same parameters on all ranks."""
        return [(p.device_mesh, *_sharded_dims(p)) if hasattr(p, "placements") else None for p in params]

    def shard_number(self, param: Any) -> int:
        """Which of a parameter's different shards this rank has, counted from 0; replicas have the same."""
        number = 0
        for dim in _sharded_dims(param):
            number = number * param.device_mesh.size(dim) + param.device_mesh.get_local_rank(dim)
        return number

    def _begin_anew(self) -> None:
        torch_internals.begin_anew(self._sharded)
        self.parameters_are_read()

    def _all_reduce(self, numbers: Tensor, op: Any) -> None:
        kind = self._mesh.device_type
        there = numbers if numbers.device.type == kind else numbers.to(kind)  # parameters may be offloaded to the CPU
        if self.num == torch.distributed.get_world_size():
            torch.distributed.all_reduce(there, op)
        else:
            for dim in range(self._mesh.ndim):
                torch.distributed.all_reduce(there, op, group=self._mesh.get_group(dim))
        if there is not numbers:
            numbers.copy_(there)


def mesh_of(params: Sequence[Tensor]) -> Mesh | None:
    """The processes that hold shards of these parameters; None: this one holds all of them."""
    return Mesh((), params) if any(hasattr(p, "placements") for p in params) else None


def _num_shards(p: Any) -> int:
    """How many different parts of a parameter there are."""
    return math.prod(p.device_mesh.size(dim) for dim in _sharded_dims(p))


def _sharded_dims(p: Any) -> list[int]:
    """The dimensions of its mesh along which a parameter is cut."""
    return [dim for dim, placement in enumerate(getattr(p, "placements", ())) if not placement.is_replicate()]


def _like(p: Any, shard: Tensor) -> Tensor:
    """A shard as a DTensor with the layout of a parameter."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(shard, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
