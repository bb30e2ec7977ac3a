"""`DistributedDataParallel`: every rank has all parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gradalign.engine import torch_internals
from gradalign.engine.buckets import reduce_together
from gradalign.engine.ranks import Ranks


class DataParallel(Ranks):
    """`DistributedDataParallel`: every rank has all parameters, and `.grad` is averaged as a whole where it is asked for.

    Until a vector is read its passes add to it locally: where it already holds an average T, which is the same on all ranks,
    mean over ranks of (T + P_r) = T + mean P_r. With `find_unused_parameters` or `static_graph`, where a reduction that is left
    out would be wrong, every pass of a step with the term is averaged; one without it does what the plain loop would, whose
    `no_sync` is the user's. So it is with several wrappers: one that the last pass does not run would never average what it
    held back, without a word.

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
        self._active = True

    @property
    def every_pass(self) -> bool:
        """Whether no reduction may be left out."""
        return len(self._wrappers) > 1 or any(map(torch_internals.cannot_skip_a_reduction, self._wrappers))

    def begin(self, active: bool) -> None:
        """Buffers are broadcast as the first forward of the plain loop would: once a step, so that replays agree.

        Raises:
            RuntimeError: inside `torch.distributed.algorithms.Join`.
            ValueError: a communication hook was registered since the last step.
        """
        for wrapper in self._wrappers:
            _averages_by_itself(wrapper)
        if any(map(torch_internals.inside_join, self._wrappers)):
            raise RuntimeError(
                "expected the same number of micro-batches on all ranks; got a step inside Join, whose ranks may have no "
                "input; drop the last, incomplete batches instead"
            )
        self._active = active
        self._param_sync = list(map(torch_internals.broadcasts_in_forward, self._wrappers))
        if self.every_pass:  # so do they all in the plain loop then
            return
        for wrapper in self._wrappers:
            torch_internals.broadcast_buffers(wrapper)
            torch_internals.broadcast_in_forward(wrapper, False)

    def end(self, complete: bool) -> None:
        """The next forward broadcasts buffers, as after the last pass of the plain loop."""
        before, self._param_sync = self._param_sync, None
        if before is not None:
            for wrapper, synced in zip(self._wrappers, before, strict=True):
                torch_internals.broadcast_in_forward(wrapper, synced or complete)

    def one_pass(self, more: bool, backward: bool = True) -> AbstractContextManager[None]:
        """Average in this pass or not, whatever a `no_sync` of the user's says, but where that makes the plain loop."""
        every = self.every_pass
        if every and not self._active and backward and (more or all(map(torch_internals.averages, self._wrappers))):
            return nullcontext()
        return torch_internals.averaging(self._wrappers, gradients=backward and (every or not more), buffers=every)

    def average(self, tensors: Iterable[Tensor], share: float) -> None:
        """Several tensors in one all-reduce."""

        def start(flat: Tensor) -> Any:
            return torch.distributed.all_reduce(flat, group=self._group, async_op=True)

        reduce_together(tensors, start, share / self.num)

    def _all_reduce(self, numbers: Tensor, op: Any) -> None:
        torch.distributed.all_reduce(numbers, op, group=self._group)


def _supported(wrapper: DistributedDataParallel) -> None:
    """Refuse options under which several gradients cannot be kept apart."""
    name = "model: expected DistributedDataParallel"
    if torch_internals.shares_gradient_memory(wrapper):
        raise ValueError(
            f"{name} with gradients of their own; got gradient_as_bucket_view=True, which makes the gradients of all passes "
            "views of the same memory; leave it off"
        )
    if torch_internals.has_mixed_precision(wrapper):
        raise ValueError(f"{name} without mixed_precision; got one with it; use torch.autocast in loss_fn instead")
    if torch_internals.has_buffer_hook(wrapper):
        raise ValueError(f"{name} whose buffers are broadcast from rank 0 or not at all; got a hook for buffers")
    _averages_by_itself(wrapper)
    ignored = torch_internals.ignored_names(wrapper)
    if any(p.requires_grad and name_ in ignored for name_, p in wrapper.module.named_parameters()):
        raise ValueError(f"{name} that averages all gradients; got parameters that it ignores; freeze or include them")


def _averages_by_itself(wrapper: DistributedDataParallel) -> None:
    """Refuse communication hooks, which need not give the mean, nor be linear, nor leave parameters alone."""
    hook = torch_internals.comm_hook(wrapper)
    if hook is not None:
        raise ValueError(
            "model: expected DistributedDataParallel that averages gradients by itself; got the communication hook "
            f"{hook}: what it loses to compression would be divided by the radius, what it remembers mixes passes, and an "
            "optimizer in it would step between them; register none (allreduce_hook, which is the plain mean, may stay)"
        )
