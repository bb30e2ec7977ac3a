"""Medians of interleaved rounds, as fractions of the bandwidth of in-place `y += a x` on the same list in the same run."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from workloads import Lists

from benchmarks.steps import record
from gradalign.backends import dispatch

# (op, variant) -> call, and how many tensors' worth of bytes it must move by DESIGN section 3
Calls = dict[tuple[str, str], tuple[Callable[[], object], int]]


@dataclass
class Row:
    """One variant on one workload."""

    workload: str
    op: str
    variant: str
    dtype: str
    microseconds: float
    gigabytes_per_second: float
    of_add: float  # as a fraction of the bandwidth of y += a x
    rounds: int


def backends(device: torch.device, dtype: torch.dtype) -> Iterator[ModuleType]:
    """Those that work on this device; reference on the CPU only, where it is an oracle to be looked at."""
    for name in ("native", "triton", "reference") if device.type == "cpu" else ("native", "triton"):
        module = dispatch.load(name)
        if module.why_unavailable() is None and module.supports(device.type, frozenset({dtype})):
            yield module


def yardsticks(lists: Lists) -> Calls:
    """What torch itself reaches on the same lists."""
    return {
        ("y += a x", "torch"): (lambda: torch._foreach_add_(lists.backup, lists.x, alpha=1e-7), 3),
        ("copy", "torch"): (lambda: torch._foreach_copy_(lists.backup, lists.p), 2),
    }


def compiled(call: Callable[[], object]) -> Callable[[], object] | None:
    """torch.compile of a call, compiled; None, with the reason on stderr, where it cannot be."""
    together = torch.compile(call, dynamic=False)
    try:
        together(), together()  # what changes from the first call to the second is compiled again
    except Exception as error:  # a compiler that is missing or refuses is no reason to lose the other figures
        print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return together


class Clock:
    """Times calls: with events on a device, with the host's clock on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = device.type == "cuda"

    def seconds(self, call: Callable[[], object]) -> Callable[[], float]:
        """Runs the call now; what it returns gives the time once the device is done."""
        if not self._on_device:
            start = time.perf_counter()
            call()
            passed = time.perf_counter() - start
            return lambda: passed
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        """Until all calls are done."""
        if self._on_device:
            torch.cuda.synchronize()


def timings(calls: Calls, device: torch.device, seconds: float) -> dict[tuple[str, str], list[float]]:
    """Seconds of each call; one of each a round, so that all meet the same disturbances; 5 rounds at least, 100 at most."""
    clock = Clock(device)
    for call, _ in calls.values():  # the first call builds and loads, the second one fills caches
        call(), call()
    clock.wait()
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    start = time.perf_counter()
    for turn in range(100):
        if turn >= 5 and time.perf_counter() - start > seconds:
            break
        next(iter(calls.values()))[0]()  # keeps a device busy, so that no event of the first call waits for its launch
        pending = {key: clock.seconds(call) for key, (call, _) in calls.items()}
        clock.wait()
        for key, passed in pending.items():
            taken[key].append(passed())
    return taken


def rows(workload: str, lists: Lists, calls: Calls, seconds: float) -> list[Row]:
    """The medians of the calls, with the yardsticks in the same rounds."""
    calls = yardsticks(lists) | calls
    first = lists.p[0]
    taken = timings(calls, first.device, seconds)
    medians = {key: statistics.median(values) for key, values in taken.items()}
    rate = {key: tensors * lists.bytes / medians[key] / 1e9 for key, (_, tensors) in calls.items()}
    dtype = str(first.dtype).removeprefix("torch.")
    return [
        Row(
            workload, *key, dtype, 1e6 * medians[key], rate[key], rate[key] / rate["y += a x", "torch"], len(taken[key])
        )
        for key in calls
    ]


def arguments(description: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads")
    parser.add_argument("--seconds", type=float, default=120, help="for all rounds together, about")
    chosen = parser.parse_args(argv)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    return chosen


def report(measured: Iterable[list[Row]], device: str, path: str | None) -> list[Row]:
    """As a table, and with machine, versions and date as JSON, written anew after every workload."""
    print(f"{'workload':<18} {'dtype':<9} {'op':<30} {'variant':<20} {'us':>10} {'GB/s':>7} {'of add':>7}")
    results: list[Row] = []
    about = {"date": record.date(), **record.provenance(device, seed=0)}
    for some in measured:
        results += some
        for r in some:
            print(
                f"{r.workload:<18} {r.dtype:<9} {r.op:<30} {r.variant:<20} "
                f"{r.microseconds:>10.0f} {r.gigabytes_per_second:>7.1f} {r.of_add:>7.2f}",
                flush=True,
            )
        if path:
            write_whole(Path(path), json.dumps({**about, "rows": [asdict(row) for row in results]}, indent=1) + "\n")
    return results


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, whenever the process is stopped."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
