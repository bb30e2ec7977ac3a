"""float32 masters of bfloat16 and float16 parameters: the parameter is the rounding of its master."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.backends.chunks import chunks
from gradalign.engine.torch_internals import held


def make_master(param: Tensor) -> Tensor:
    """A float32 copy."""
    return param.detach().to(torch.float32, memory_format=torch.preserve_format, copy=True)


class MasterVersions:
    """Which parameters are known to be the rounding of their masters, by the version that autograd counts.

    Whoever writes to a parameter otherwise (a checkpoint loaded into the model, weights clamped or tied) raises its version;
    the master then takes over the elements that no longer are its rounding, and keeps the rest at full precision.
    """

    def __init__(self) -> None:
        self._versions: dict[Tensor, object] = {}

    def matched(self, params: Iterable[Tensor]) -> None:
        """These parameters are the rounding of their masters as they are now."""
        self._versions.update((p, _version(p)) for p in params)

    @torch.no_grad()
    def follow(self, param: Tensor, master: Tensor) -> None:
        """Bring the master up to date, if the parameter may have changed without it."""
        if self._versions.get(param) == _version(param):
            return
        for mc, pc in chunks(held(master), held(param).detach()):
            # The bits are compared: as numbers 0 and -0 are equal.
            same = mc.to(pc.dtype).view(torch.int16) == pc.view(torch.int16)
            mc.copy_(torch.where(same, mc, pc.float()))
        self.matched((param,))


def _version(param: Tensor) -> object:
    """How often it and its shard were written, and where it is: another tensor in its place may have been written as often.

    torch's operations raise the version of a DTensor and not of its shard; kernels here work on shards.
    """
    t = held(param)
    if param.is_inference() or t.is_inference():  # nobody counts: equal to no other
        return object()
    return param._version, t._version, t.data_ptr() if type(t) in (Tensor, Parameter) else 0  # fakes have no memory
