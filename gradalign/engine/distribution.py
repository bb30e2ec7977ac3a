"""How models are distributed over processes."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradalign.engine import torch_internals
from gradalign.engine.data_parallel import DataParallel
from gradalign.engine.mesh import Mesh
from gradalign.engine.ranks import Ranks


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
        "fully_shard": "works" if torch_internals.can_begin_anew() else None,
        "torchrun": job,
    }
