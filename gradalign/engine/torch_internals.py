"""Entry points of torch's engines for several processes that are not documented, in one place.

Each has a test in tests/distributed/test_torch_internals.py, which fails where torch has lost it or gives it another meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

# DistributedDataParallel


def cannot_skip_a_reduction(wrapper: DistributedDataParallel) -> bool:
    """Whether every backward has to average the gradients."""
    return wrapper.find_unused_parameters or wrapper.static_graph


def shares_gradient_memory(wrapper: DistributedDataParallel) -> bool:
    """Whether gradients are views of the wrapper's own memory."""
    return wrapper.gradient_as_bucket_view


def has_mixed_precision(wrapper: DistributedDataParallel) -> bool:
    """Whether the wrapper casts parameters by itself."""
    return wrapper.mixed_precision is not None


def has_buffer_hook(wrapper: DistributedDataParallel) -> bool:
    """Whether somebody else decides what is broadcast of the buffers."""
    return hasattr(wrapper, "buffer_hook")


def comm_hook(wrapper: DistributedDataParallel) -> str | None:
    """The name of a hook that averages gradients in the wrapper's place; None where there is none or it does the same.

    Hooks in C++ are not among `_comm_hooks`, which has the functions themselves: the wrapper's log has the names of both kinds.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    if [hook for hook, _ in wrapper._comm_hooks] == [allreduce_hook]:
        return None
    name = wrapper._get_ddp_logging_data().get("comm_hook")
    return None if name == str(torch.distributed.BuiltinCommHookType.ALLREDUCE) else name


def ignored_names(wrapper: DistributedDataParallel) -> set[str]:
    """The names of the parameters that the wrapper leaves alone."""
    return wrapper.parameters_to_ignore


def inside_join(wrapper: DistributedDataParallel) -> bool:
    """Whether ranks may have different numbers of inputs now."""
    return wrapper._join_config.enable


def broadcast_buffers(wrapper: DistributedDataParallel) -> None:
    """What a forward does with buffers, where it does."""
    if wrapper.will_sync_module_buffers():
        wrapper._sync_buffers()


def broadcasts_in_forward(wrapper: DistributedDataParallel) -> bool:
    """Whether the next forward broadcasts buffers."""
    return wrapper.require_forward_param_sync


def averages(wrapper: DistributedDataParallel) -> bool:
    """Whether the next backward averages the gradients; not inside `no_sync`."""
    return wrapper.require_backward_grad_sync


def broadcast_in_forward(wrapper: DistributedDataParallel, flag: bool) -> None:
    """Whether the next forward is to do it."""
    wrapper.require_forward_param_sync = flag


@contextmanager
def averaging(wrappers: Sequence[DistributedDataParallel], gradients: bool, buffers: bool) -> Iterator[None]:
    """Whether a pass averages gradients and broadcasts buffers; put back as it was.

    Raises:
        RuntimeError: from torch, where gradients were to be averaged and some were not.
    """
    before = [(w, w.require_backward_grad_sync, w.require_forward_param_sync) for w in wrappers]
    try:
        for wrapper in wrappers:
            wrapper.require_backward_grad_sync = gradients
            wrapper.require_forward_param_sync = buffers
        yield
        if gradients:
            for wrapper in wrappers:
                wrapper._check_reducer_finalized()
    finally:
        for wrapper, grad_sync, param_sync in before:
            wrapper.require_backward_grad_sync = grad_sync
            wrapper.require_forward_param_sync = param_sync


# fully_shard. A module that it was applied to has a state, with one group of parameters or several.


def can_begin_anew() -> bool:
    """Whether `fully_shard` can go on after an exception."""
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, "reset_iter_state")


def begin_anew(modules: Sequence[Any]) -> None:
    """What an exception left is let go: gradients that were held back, gathered copies, what `fully_shard` noted."""
    for group in _groups(modules):
        for p in group.fsdp_params:
            if getattr(p, "unsharded_accumulated_grad", None) is not None:
                p.unsharded_accumulated_grad = None
            gathered = getattr(p, "_unsharded_param", None)
            if gathered is not None:
                gathered.grad = None
    for module in modules:
        if is_root(module):
            module.reset_iter_state()


def is_root(module: Any) -> bool | None:
    """Whether `fully_shard` was applied to this module last; None before the first forward."""
    return module._get_fsdp_state()._is_root


def holds_back(modules: Sequence[Any]) -> bool:
    """Whether gradients of earlier passes wait for a reduction."""
    return any(
        group._partial_reduce_output is not None
        or any(
            getattr(p, "unsharded_accumulated_grad", None) is not None
            or getattr(getattr(p, "_unsharded_param", None), "grad", None) is not None
            for p in group.fsdp_params
        )
        for group in _groups(modules)
    )


@contextmanager
def reducing(modules: Sequence[Any]) -> Iterator[None]:
    """A pass reduces gradients, whatever the user has set; put back as it was."""
    groups = list(_groups(modules))
    flags = [(group, group.reduce_grads, group.all_reduce_grads) for group in groups]
    states = (m._get_fsdp_state()._state_ctx for m in modules)
    contexts = [(c, c.is_last_backward) for c in {id(c): c for c in states}.values()]
    try:
        for group in groups:
            group.reduce_grads = group.all_reduce_grads = True
        for context, _ in contexts:
            context.is_last_backward = True
        yield
    finally:
        for group, reduce, all_reduce in flags:
            group.reduce_grads, group.all_reduce_grads = reduce, all_reduce
        for context, last in contexts:
            context.is_last_backward = last


def gathered_params(modules: Sequence[Any]) -> list[Tensor]:
    """The gathered parameters, which are the leaves of autograd's graphs."""
    found = (getattr(p, "_unsharded_param", None) for group in _groups(modules) for p in group.fsdp_params)
    return [p for p in found if p is not None]


def forward_dtypes(modules: Sequence[Any]) -> set[torch.dtype]:
    """What mixed precision policies cast parameters to."""
    return {group.mp_policy.param_dtype for group in _groups(modules)} - {None}


def reduce_dtypes(modules: Sequence[Any]) -> set[torch.dtype]:
    """What mixed precision policies cast gradients to before they are reduced."""
    return {group.mp_policy.reduce_dtype for group in _groups(modules)} - {None}


def _groups(modules: Sequence[Any]) -> Iterator[Any]:
    return (group for m in modules for group in m._get_fsdp_state()._fsdp_param_groups)


# DTensor


def held(t: Any) -> Any:
    """What of a tensor this process holds: the tensor itself, whose version writes raise, and no view of it."""
    return getattr(t, "_local_tensor", t)


def local_slices(param: Any) -> tuple[slice, ...]:
    """Where in a parameter this process's shard is."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(param.shape, param.device_mesh, param.placements)
    return tuple(slice(o, o + size) for o, size in zip(offset, shape, strict=True))
