"""The processes that train one model together, and what torch's engines for them are asked for.

No other module knows of other processes, and no other one uses entry points of torch that are not documented; each of those
has a test in tests/distributed that fails where torch has lost it.

Micro-batch i of a step is what all ranks have as their i-th: its loss and its gradient are the means over ranks.
"""

from __future__ import annotations

import math
import os
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
    def begin(self) -> None:
        """A step begins: what all its passes share is made the same."""

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
            raise ValueError(
                f"{differing[0]}: expected the same on all ranks, whose i-th micro-batches count as one; got "
                f"{request[differing[0]]!r} on this rank and something else on another; order micro-batches alike on all ranks"
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


class DataParallel(Ranks):
    """`DistributedDataParallel`: every rank has all parameters, and `.grad` is averaged as a whole where it is asked for.

    Until a vector is read its passes add to it locally: where it already holds an average T, which is the same on all ranks,
    mean over ranks of (T + P_r) = T + mean P_r. With `find_unused_parameters` or `static_graph`, where a reduction that is left
    out would be wrong, every pass is averaged.

    Args:
        wrappers: the wrapped modules.

    Raises:
        ValueError: a wrapper whose options make gradients of single passes impossible.
    """

    def __init__(self, wrappers: Sequence[DistributedDataParallel]) -> None:
        self._wrappers = list(wrappers)
        for wrapper in self._wrappers:
            _supported(wrapper)
        self._group = self._wrappers[0].process_group
        if any(wrapper.process_group != self._group for wrapper in self._wrappers):
            raise ValueError(
                "model: expected DistributedDataParallel modules of one process group; got several groups; wrap all modules "
                "with the same process_group"
            )
        self.num = torch.distributed.get_world_size(self._group)
        self._param_sync: list[bool] | None = None  # of the wrappers, before the step

    @property
    def every_pass(self) -> bool:
        """Whether no reduction may be left out."""
        return any(w.find_unused_parameters or w.static_graph for w in self._wrappers)

    def begin(self) -> None:
        """Buffers are broadcast as the first forward of the plain loop would: once a step, so that replays agree.

        Raises:
            RuntimeError: inside `torch.distributed.algorithms.Join`.
        """
        if any(w._join_config.enable for w in self._wrappers):
            raise RuntimeError(
                "expected the same number of micro-batches on all ranks; got a step inside Join, whose ranks may have no "
                "input; drop the last, incomplete batches instead"
            )
        self._param_sync = [w.require_forward_param_sync for w in self._wrappers]
        if self.every_pass:  # so do they all in the plain loop then
            return
        for wrapper in self._wrappers:
            if wrapper.will_sync_module_buffers():
                wrapper._sync_buffers()
            wrapper.require_forward_param_sync = False

    def end(self, complete: bool) -> None:
        """The next forward broadcasts buffers, as after the last pass of the plain loop."""
        before, self._param_sync = self._param_sync, None
        if before is not None:
            for wrapper, synced in zip(self._wrappers, before, strict=True):
                wrapper.require_forward_param_sync = synced or complete

    @contextmanager
    def one_pass(self, more: bool, backward: bool = True) -> Iterator[None]:
        """Average in this pass or not, whatever a `no_sync` of the user's says."""
        every = self.every_pass
        averaged = backward and (every or not more)
        before = [(w, w.require_backward_grad_sync, w.require_forward_param_sync) for w in self._wrappers]
        try:
            for wrapper in self._wrappers:
                wrapper.require_backward_grad_sync = averaged
                wrapper.require_forward_param_sync = every
            yield
            if averaged:
                for wrapper in self._wrappers:
                    wrapper._check_reducer_finalized()
        finally:
            for wrapper, grad_sync, param_sync in before:
                wrapper.require_backward_grad_sync = grad_sync
                wrapper.require_forward_param_sync = param_sync

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor], share: float) -> None:
        """All of them at once."""
        held = list(tensors)
        works = [torch.distributed.all_reduce(t, group=self._group, async_op=True) for t in held]
        for work in works:
            work.wait()
        torch._foreach_mul_(held, share / self.num)

    def _all_reduce(self, numbers: Tensor, op: Any) -> None:
        torch.distributed.all_reduce(numbers, op, group=self._group)


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
        if self._sharded and not _can_begin_anew():
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
        self._before: list[tuple[Any, bool, bool]] | None = None

    def begin(self) -> None:
        """Nothing is left of an earlier backward.

        Raises:
            ValueError: gradients that `fully_shard` holds back; a module inside the one that it was applied to last.
        """
        for group in self._groups():
            held = group._partial_reduce_output is not None or any(
                getattr(p, "unsharded_accumulated_grad", None) is not None
                or getattr(getattr(p, "_unsharded_param", None), "grad", None) is not None
                for p in group.fsdp_params
            )
            if held:
                raise ValueError(
                    "expected no gradients from before the step; got some that fully_shard holds back "
                    "(set_requires_gradient_sync(False)), which would be added to the first vector; end that accumulation first"
                )
        if self._sharded and all(m._get_fsdp_state()._is_root is False for m in self._sharded):
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
        groups = list(self._groups())
        flags = [(group, group.reduce_grads, group.all_reduce_grads) for group in groups]
        contexts = [(c, c.is_last_backward) for c in {id(c): c for c in self._contexts()}.values()]
        try:
            for group in groups:
                group.reduce_grads = group.all_reduce_grads = True
            for context, _ in contexts:
                context.is_last_backward = True
            yield
            if not backward:
                self._begin_anew()
        finally:
            for group, reduce, all_reduce in flags:
                group.reduce_grads, group.all_reduce_grads = reduce, all_reduce
            for context, last in contexts:
                context.is_last_backward = last

    def parameters_are_read(self) -> None:
        """Gathered copies are let go, also where the user keeps them, and parameters are the shards again."""
        for module in self._sharded:
            module.reshard()

    def leaves(self) -> Iterable[Tensor]:
        """The gathered parameters."""
        found = (getattr(p, "_unsharded_param", None) for group in self._groups() for p in group.fsdp_params)
        return [p for p in found if p is not None]

    @property
    def forward_dtypes(self) -> set[torch.dtype]:
        """Those of the mixed precision policies."""
        return {group.mp_policy.param_dtype for group in self._groups()} - {None}

    @property
    def devices(self) -> set[torch.device]:
        """That of the mesh: parameters may be offloaded to the CPU."""
        kind = self._mesh.device_type
        return set() if kind == "cpu" else {torch.device(kind, torch.get_device_module(kind).current_device())}

    def local(self, tensors: Iterable[Any]) -> list[Any]:
        """The shards."""
        return list(map(held, tensors))

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
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        (shard,) = self.local([t])
        shape, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
        whole = torch.zeros(param.shape, dtype=shard.dtype, device=shard.device)
        if shard.numel():
            whole[tuple(slice(o, o + size) for o, size in zip(offset, shape, strict=True))] = shard
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

    def _begin_anew(self) -> None:
        for group in self._groups():
            for p in group.fsdp_params:
                if getattr(p, "unsharded_accumulated_grad", None) is not None:
                    p.unsharded_accumulated_grad = None
                gathered = getattr(p, "_unsharded_param", None)
                if gathered is not None:
                    gathered.grad = None
        for module in self._sharded:
            if module._get_fsdp_state()._is_root:  # None before the first forward
                module.reset_iter_state()
        self.parameters_are_read()

    def _contexts(self) -> Iterator[Any]:
        return (m._get_fsdp_state()._state_ctx for m in self._sharded)

    def _groups(self) -> Iterator[Any]:
        return (group for m in self._sharded for group in m._get_fsdp_state()._fsdp_param_groups)

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


def held(t: Any) -> Any:
    """What of a tensor this process holds."""
    return getattr(t, "_local_tensor", t)


def _num_shards(p: Any) -> int:
    """How many different parts of a parameter there are."""
    sizes = [p.device_mesh.size(i) for i, q in enumerate(getattr(p, "placements", ())) if not q.is_replicate()]
    return math.prod(sizes)


def _like(p: Any, shard: Tensor) -> Tensor:
    """A shard as a DTensor with the layout of a parameter."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(shard, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def _supported(wrapper: DistributedDataParallel) -> None:
    """Refuse options under which several gradients cannot be kept apart."""
    name = "model: expected DistributedDataParallel"
    if wrapper.gradient_as_bucket_view:
        raise ValueError(
            f"{name} with gradients of their own; got gradient_as_bucket_view=True, which makes the gradients of all passes "
            "views of the same memory; leave it off"
        )
    if wrapper.mixed_precision is not None:
        raise ValueError(f"{name} without mixed_precision; got one with it; use torch.autocast in loss_fn instead")
    if hasattr(wrapper, "buffer_hook"):
        raise ValueError(f"{name} whose buffers are broadcast from rank 0 or not at all; got a hook for buffers")
    ignored = wrapper.parameters_to_ignore
    if any(p.requires_grad and name_ in ignored for name_, p in wrapper.module.named_parameters()):
        raise ValueError(f"{name} that averages all gradients; got parameters that it ignores; freeze or include them")


def ranks_of(modules: Iterable[nn.Module]) -> Ranks | None:
    """The processes that train these modules together; None: this one alone.

    Raises:
        ValueError: a mixture of wrapped and other parameters, or options that cannot work.
    """
    given = list(modules)
    sharded = any(_is_fully_sharded(m) or any(hasattr(p, "placements") for p in m.parameters()) for m in given)
    wrappers = list(
        {id(m): m for model in given for m in model.modules() if isinstance(m, DistributedDataParallel)}.values()
    )
    if sharded and wrappers:
        raise ValueError(
            "model: expected DistributedDataParallel or DTensors; got both; use a mesh of two dimensions with fully_shard"
        )
    if sharded:
        return Mesh(given)
    if not wrappers:
        return None
    averaged = {id(p) for wrapper in wrappers for p in wrapper.parameters()}
    left = sum(p.requires_grad and id(p) not in averaged for model in given for p in model.parameters())
    if left:
        raise ValueError(
            f"model: expected trained parameters that are all inside DistributedDataParallel; got {left} outside, whose "
            "gradients nobody would average; wrap their module too, or freeze it"
        )
    return DataParallel(wrappers)


def _is_fully_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was applied to a module, whose parameters may be gathered now."""
    return any(hasattr(m, "reshard") and hasattr(m, "unshard") for m in model.modules())


def process_groups() -> dict[str, str | None]:
    """What torch offers here for several processes, for `gradalign doctor`: a name and a version or kind; None: not there."""
    dist = torch.distributed
    if not dist.is_available():
        return {"process groups": None}
    backends = [name for name in ("nccl", "gloo", "mpi", "ucc") if getattr(dist, f"is_{name}_available")()]
    job = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']}" if dist.is_torchelastic_launched() else None
    return {
        "process groups": " and ".join(backends) or None,
        "fully_shard": "works" if _can_begin_anew() else None,
        "torchrun": job,
    }


def _can_begin_anew() -> bool:
    """Whether `fully_shard` can go on after an exception."""
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, "reset_iter_state")


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
