"""What is measured beside training: how well gradients agree, and the peak memory of an arm."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

import gradalign
from gradalign.cli.demo.reviews.arm import Arm, mean_loss
from gradalign.cli.workload.model import Batch, Classifier


def alignment(model: Classifier, micro_batches: Sequence[Batch]) -> dict[str, float]:
    """Agreement of the gradients of fixed micro-batches, in eval mode (no dropout).

    Args:
        model: its `.grad` must be None and is None afterwards.
        micro_batches: k >= 2 of them.

    Returns:
        "dot", the mean g_i . g_j over all pairs [loss^2 / parameter^2]; "cosine", the mean cos(g_i, g_j); "grad_norm", the norm
        of their mean; "noise_scale" in micro-batches.
    """
    model.eval()
    aligner = gradalign.GradAlign(model, weight=0.0, telemetry=True)
    aligner.backward(lambda batch: mean_loss(model, batch), micro_batches)
    model.zero_grad()
    model.train()
    return {name: float(getattr(aligner.stats, name)) for name in ("dot", "cosine", "grad_norm", "noise_scale")}


def peak_memory(make_arm: Callable[[], Arm], micro_batches: Sequence[Batch], device: torch.device) -> int:
    """Peak bytes of the tensors of an arm: parameters, gradients, optimizer state, activations, backups.

    Measured over construction and two steps of a new arm: by the allocator's statistics on CUDA, by the allocations that the
    profiler records on the CPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _two_steps(make_arm(), micro_batches)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would report its own start and stop on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _two_steps(make_arm(), micro_batches)
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def _two_steps(arm: Arm, micro_batches: Sequence[Batch]) -> None:
    for _ in range(2):
        arm.step(micro_batches)
