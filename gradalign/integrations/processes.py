"""Which of a trainer's ways to train on several devices are served: a process and `DistributedDataParallel` for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

OWN_LOOP = "GradAlign(model, ...) with fully_shard in your own loop (docs/design.md, Several processes)"


def served(accelerator: Any) -> None:
    """The Accelerator trains in one process on one device, or in several with one device each.

    Raises:
        TypeError: DeepSpeed, shards, or another way of sharing one model.
    """
    kind = _kind(accelerator)
    if kind == "DEEPSPEED":
        raise TypeError(
            "accelerator: expected training without DeepSpeed; got DeepSpeed, whose engine scales, reduces and partitions "
            "gradients inside its own backward, so that no step can be put together from several; train without it, with "
            f"DistributedDataParallel, LoRA or gradient checkpointing where memory is short, or {OWN_LOOP}"
        )
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise TypeError(
            f"accelerator: expected one device, or several with DistributedDataParallel; got {kind}, whose gradients of single "
            f"passes cannot be kept apart here; train without it, or use {OWN_LOOP}"
        )
    parallelism = getattr(accelerator, "parallelism_config", None)
    if parallelism is not None and any(
        getattr(parallelism, f"{name}_enabled", False) for name in ("tp", "cp", "sp", "dp_shard")
    ):
        raise TypeError(
            "parallelism_config: expected none, or data parallelism without shards; got one that splits a model or a "
            "micro-batch over processes; train without it"
        )


def several(accelerator: Any) -> bool:
    """Whether the Accelerator wraps models for several processes."""
    return _kind(accelerator) != "NO"


def wrapped(modules: Iterable[nn.Module], where: str) -> None:
    """Some module is in `DistributedDataParallel`, which averages gradients over the processes.

    Args:
        modules: those of an aligner.
        where: how the user gets one that is, for the message.

    Raises:
        TypeError: none is.
    """
    if not any(isinstance(inner, DistributedDataParallel) for module in modules for inner in module.modules()):
        raise TypeError(
            "aligner: expected that of a module in DistributedDataParallel, since several processes train; got one of a module "
            f"whose gradients nobody averages; {where}"
        )


def _kind(accelerator: Any) -> str:
    return str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
