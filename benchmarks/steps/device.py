"""What only a GPU has: seconds until the host has launched a step, kernel launches, synchronisations."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "hipLaunchKernel",
    "hipExtModuleLaunchKernel",
)
SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "hipStreamSynchronize")


def observe(step: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """{"host_seconds", "launches", "synchronisations"} of a step; all None without a GPU."""
    if device.type != "cuda":
        return {"host_seconds": None, "launches": None, "synchronisations": None}
    counts = _profiled(step, device)
    return {"host_seconds": _host_seconds(step, device), **counts}


def _host_seconds(step: Callable[[], None], device: torch.device, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    torch.cuda.synchronize(device)
    return statistics.median(seconds)


def _profiled(step: Callable[[], None], device: torch.device) -> dict[str, int]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    # The profiler itself waits for the device once at its end.
    return count({event.key: event.count for event in profile.key_averages()}, own_waits=1)


def count(calls: dict[str, int], own_waits: int) -> dict[str, int]:
    """Launches and synchronisations among the runtime's calls."""
    waits = sum(calls.get(name, 0) for name in SYNCHRONISATIONS)
    return {
        "launches": sum(calls.get(name, 0) for name in LAUNCHES),
        "synchronisations": max(0, waits - own_waits),
    }
