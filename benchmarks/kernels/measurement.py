"""Rows from calls: medians of interleaved rounds, and bandwidth as a fraction of that of in-place `y += a x`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch

from benchmarks.kernels.workloads import Lists
from benchmarks.record import Fields, Row
from benchmarks.timing import Budget, Call, Clock, EventClock, HostClock, interleaved
from gradalign.backends import dispatch

LEAST_ROUNDS = 5
YARDSTICK = ("y += a x", "torch")
FIELDS = Fields(workload=("name", "dtype"), figures=("op", "microseconds", "gigabytes_per_second", "of_add", "rounds"))


class Counted(NamedTuple):
    """A call, and how many times the bytes of the parameters it must read and write (the tables in docs/kernels.md)."""

    call: Call
    copies: int


Calls = dict[tuple[str, str], Counted]  # by op and method


def backends(device: torch.device, dtype: torch.dtype) -> Iterator[ModuleType]:
    """Those that work on this device; `reference` on the CPU only: it is there to be compared with, not to be fast."""
    for name in ("native", "triton", "reference") if device.type == "cpu" else ("native", "triton"):
        backend = dispatch.load(name)
        if backend.why_unavailable() is None and backend.supports(device.type, frozenset({dtype})):
            yield backend


def yardsticks(lists: Lists) -> Calls:
    """What torch itself reaches on the same lists: on a GPU its ops on lists cut one large tensor into several launches."""
    if len(lists.p) == 1:
        (backup,), (x,), (p,) = lists.backup, lists.x, lists.p
        return {
            YARDSTICK: Counted(lambda: backup.add_(x, alpha=1e-7), 3),
            ("copy", "torch"): Counted(lambda: backup.copy_(p), 2),
        }
    return {
        YARDSTICK: Counted(lambda: torch._foreach_add_(lists.backup, lists.x, alpha=1e-7), 3),
        ("copy", "torch"): Counted(lambda: torch._foreach_copy_(lists.backup, lists.p), 2),
    }


def in_order(*calls: Call) -> Call:
    """One call that makes all of these."""
    return lambda: [call() for call in calls]


def is_compiled(lists: Lists) -> bool:
    """Whether torch.compile is measured on them: on one tensor, since many take minutes to compile, and not on the largest."""
    return len(lists.p) == 1 and lists.p[0].numel() <= 1 << 26


def compiled(call: Call) -> Call | None:
    """torch.compile of a call, compiled; None, with the reason on stderr, where it cannot be."""
    result = torch.compile(call, dynamic=False)
    try:
        result(), result()  # what changes from the first call to the second is compiled again
    except Exception as error:  # a compiler that is missing or refuses is no reason to lose the other figures
        print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return result


def rows(name: str, lists: Lists, calls: Calls, seconds: float, provenance: dict[str, Any]) -> list[Row]:
    """A row for each call, the yardsticks in the same rounds.

    Args:
        name: of the workload.
        lists: its tensors.
        calls: what is measured on them.
        seconds: for all rounds together, about.
        provenance: what every row carries.
    """
    calls = yardsticks(lists) | calls
    taken = _seconds(calls, lists.p[0].device, seconds)
    medians = {key: statistics.median(values) for key, values in taken.items()}
    rates = {key: copies * lists.bytes / medians[key] / 1e9 for key, (_, copies) in calls.items()}
    workload = {"name": name, "dtype": str(lists.p[0].dtype).removeprefix("torch.")}
    return [
        {
            "workload": workload,
            "op": op,
            "method": method,
            **provenance,
            "status": "ok",
            "reason": None,
            "rounds": len(taken[op, method]),
            "microseconds": 1e6 * medians[op, method],
            "gigabytes_per_second": rates[op, method],
            "of_add": rates[op, method] / rates[YARDSTICK],
        }
        for op, method in calls
    ]


def _seconds(calls: Calls, device: torch.device, seconds: float) -> dict[tuple[str, str], list[float]]:
    clock: Clock = EventClock() if device.type == "cuda" else HostClock(device)
    for call, _ in calls.values():  # the first call builds and loads, the second one fills caches
        call(), call()
    clock.wait()
    # One call more at the start of a round keeps the device busy, so that the first event does not wait for the launch.
    first = next(iter(calls.values())).call
    plain = {key: counted.call for key, counted in calls.items()}
    return interleaved(plain, clock, Budget(seconds, LEAST_ROUNDS), before_round=first)
