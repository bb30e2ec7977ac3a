"""One measurement in a process of its own: `python -m benchmarks.steps.child JSON` prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch

from benchmarks.steps import device as gpu
from benchmarks.steps import kernels, memory, methods
from benchmarks.steps.kernels import Watched
from benchmarks.steps.measure import in_turns, now
from benchmarks.steps.methods import Entry
from benchmarks.steps.task import Plain, Task
from benchmarks.steps.works import Loaded, Work, load
from gradalign.cli.errors import CommandError

MARK = "gradalign-bench-row "
WATCHED_IN_ROUNDS = 0.1  # seconds of a step beside which counting a few calls is nothing


def measure(work: Work, entry: Entry, device: torch.device, seed: int, seconds: float) -> dict[str, Any]:
    """Everything about one method on one work.

    Memory comes first, while the process holds nothing but the method; then plain is made beside it and the two take turns.
    """
    methods.prepare(entry)
    _warm_up(device)
    peak = memory.PeakMemory(device)
    loaded = load(work, device, seed, entry.eager)
    task = Task(loaded)
    method = entry.make(task)
    data = loaded.forever()
    method.step(next(data)[:2])  # warms up: state is made, what is compiled is compiled
    before, begun = task.num_losses, now(device)
    peaks = [peak.of(lambda: method.step(next(data))) for _ in range(entry.period)]
    step_seconds, losses = (now(device) - begun) / entry.period, (task.num_losses - before) / entry.period
    row: dict[str, Any] = {
        "parameters": loaded.numel,
        "parameter_bytes": loaded.parameter_bytes,
        "data": loaded.data,
        "peak_bytes": None if None in peaks else max(p for p in peaks if p is not None),
        "losses": losses,
        "passes": _passes(method, losses),
    }
    row |= gpu.observe(lambda: method.step(next(data)), device)
    watched = Watched(method, device)
    in_rounds = entry.family == "gradalign" and device.type == "cpu" and step_seconds > WATCHED_IN_ROUNDS
    row |= _time(work, loaded, entry, watched if in_rounds else method, device, seed, seconds)
    if entry.family == "gradalign":
        row |= _kernels(loaded, watched, device)
    return row


def _kernels(loaded: Loaded, watched: Watched, device: torch.device) -> dict[str, Any]:
    """Calls, bytes and seconds of every op in a step, and the bandwidth to hold them against."""
    for _ in range(0 if watched.num_steps else 3):
        watched.step(loaded.steps[0])
    dtype = next(loaded.model.parameters()).dtype
    return {"kernels": watched.mean(), "bandwidth": kernels.bandwidth(loaded.numel, dtype, device)}


def _time(
    work: Work, loaded: Loaded, entry: Entry, method: Any, device: torch.device, seed: int, seconds: float
) -> dict[str, Any]:
    """The method and plain in turns; plain's own row has plain against a second plain: what noise looks like."""
    beside = load(work, device, seed)
    plain = Plain(Task(beside))
    plain.step(beside.steps[0][:1])
    timing = in_turns(plain, method, loaded.forever(), device, seconds, entry.period).as_dict()
    return {**timing, "samples_per_second": work.k * work.batch / timing["seconds"]}


def _passes(method: Any, losses: float) -> float:
    """Passes of a step by the method's own count, else its loss evaluations."""
    own = getattr(method, "passes", None)
    return losses if own is None else own


def _warm_up(device: torch.device) -> None:
    """What a first backward and a first AdamW bring with them (threads, libraries, modules) is not the method's."""
    layer = torch.nn.Linear(8, 8, device=device)
    step = torch.randn(2, 4, 8, device=device)
    Plain(Task(Loaded(layer, lambda net, x: net(x).square().mean(), [], ""))).step(list(step))


def _failure(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    short = text.splitlines()[0][:300]
    out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate" in text
    return f"out of memory: {short}" if out_of_memory else f"{type(error).__name__}: {short}"


def main(request: str) -> dict[str, Any]:
    """The row of a request, or why there is none."""
    asked = json.loads(request)
    device = torch.device(asked["device"])
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    if device.type == "cpu":
        memory.limit()
    try:
        work, entry = Work(**asked["work"]), methods.entry(asked["method"])
        torch.manual_seed(asked["seed"])
        return {"status": "ok", "reason": None, **measure(work, entry, device, asked["seed"], asked["seconds"])}
    except CommandError as error:
        return {"status": "failed", "reason": str(error)}
    except Exception as error:  # whatever a method does, the others are to be measured
        return {"status": "failed", "reason": _failure(error)}


if __name__ == "__main__":
    found = main(sys.argv[1])
    print(MARK + json.dumps(found), flush=True)
    os._exit(0)  # without the destructors of models that are gone anyway
