"""Peak memory of a step: the device's allocator, or the high-water mark of this process.

On a CPU the mark is reset after a first step where Linux allows it (`/proc/self/clear_refs`), so that what making the model
or compiling took is not counted. A process measures one method only, since memory that the process has freed may stay with it.
While a step is measured every tensor of 64 kB or more is a mapping of its own, which ends when the tensor does: the mark is
then the memory of live tensors, without what the C library keeps for later.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
# Bytes from which an allocation is a mapping of its own: while measuring, and what glibc arrives at by itself.
OWN_MAPPING, USUAL = 2**16, 2**25
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes at the peak of a step above what was there before the model was made.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._now()

    def of(self, step: Callable[[], None]) -> int | None:
        """The peak while `step` runs; None where the system does not say."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            step()
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device) - self._before
        _map_from(OWN_MAPPING)
        _trim()
        _reset_mark()
        step()
        mark = status("VmHWM")
        _map_from(USUAL)
        return None if mark is None else mark - self._before

    def _now(self) -> int:
        gc.collect()
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        _trim()
        return status("VmRSS") or 0


def status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _reset_mark() -> None:
    try:
        RESET.write_text("5")
    except OSError:
        return  # then the mark holds what making the model took, too


def _trim() -> None:
    """Returns free memory to the system, where its C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def _map_from(size: int) -> None:
    """Makes allocations from this size on mappings of their own, where the C library can."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, size)
    mallopt(M_TRIM_THRESHOLD, 2 * size)


def limit(share: float = 0.85) -> None:
    """Limits this process to a share of the memory that is free now, so that it fails before the machine runs out."""
    try:
        import resource

        meminfo = Path("/proc/meminfo").read_text().splitlines()
    except (ImportError, OSError):
        return
    free = next((int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")), None)
    if free is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(share * free), resource.RLIM_INFINITY))
