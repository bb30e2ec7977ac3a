"""Which of Accelerate's ways to train on several devices are refused."""

from __future__ import annotations

from typing import Any


def one_process(accelerator: Any) -> None:
    """The Accelerator trains in one process on one device.

    Raises:
        TypeError: DeepSpeed, or several processes.
    """
    kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
    if kind == "DEEPSPEED":
        raise TypeError(
            "accelerator: expected training without DeepSpeed; got DeepSpeed, whose engine scales, reduces and partitions "
            "gradients inside its own backward, so that no step can be put together from several; train without it, with "
            "LoRA or gradient checkpointing where memory is short"
        )
    if kind != "NO" or accelerator.num_processes > 1:
        raise TypeError(
            f"accelerator: expected one process on one device; got {kind} with {accelerator.num_processes} processes, which "
            "would average the scaled gradients of single passes; start one process, with CUDA_VISIBLE_DEVICES set to one GPU"
        )
