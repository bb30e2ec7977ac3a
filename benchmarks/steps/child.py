"""One measurement in a process of its own: `python -m benchmarks.steps.child JSON` prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.errors import CommandError
from benchmarks.steps import contenders, kernel_traffic, memory
from benchmarks.steps import device as gpu
from benchmarks.steps.against_plain import in_turns
from benchmarks.steps.contenders import Contender
from benchmarks.steps.kernel_traffic import WithTraffic
from benchmarks.steps.task import Plain, Stepper, Task
from benchmarks.steps.workloads import LoadedWorkload, Workload, load
from benchmarks.timing import HostClock

MARK = "gradalign-bench-row "
RECORDED_IN_ROUNDS = (
    0.1  # seconds; in a step that takes longer, counting a few kernel calls takes no time worth telling
)


class Setting(NamedTuple):
    """What every measurement depends on beside its contender; `seconds` is how long it takes turns with plain."""

    workload: Workload
    device: torch.device
    seed: int
    seconds: float


def measure(setting: Setting, contender: Contender) -> dict[str, Any]:
    """Everything about one contender on one workload.

    Memory comes first, while the process holds nothing but the contender; then plain is made beside it and the two take turns.
    """
    device = setting.device
    contenders.prepare(contender)
    _warm_up(device)
    peak = memory.PeakMemory(device)
    loaded = load(setting.workload, device, setting.seed, contender.eager)
    task = Task(loaded)
    method, data = contender.make(task), loaded.forever()
    method.step(next(data)[:2])  # warms up: state is made, what is compiled is compiled
    row, step_seconds = _step(method, task, data, contender.period, peak, device)
    row |= {"parameters": loaded.numel, "parameter_bytes": loaded.parameter_bytes, "data": loaded.data}
    row |= gpu.observe(lambda: method.step(next(data)), device)
    recorded = WithTraffic(method, device)
    ours = contender.family == "gradalign"
    in_rounds = ours and device.type == "cpu" and step_seconds > RECORDED_IN_ROUNDS
    row |= _time(setting, loaded, recorded if in_rounds else method, contender.period)
    return row | _kernels(loaded, recorded, device) if ours else row


def _step(
    method: Stepper, task: Task, data: Iterator[list[Any]], period: int, peak: memory.PeakMemory, device: torch.device
) -> tuple[dict[str, Any], float]:
    """Peak memory and passes of a period of steps, and the seconds of a step."""
    clock = HostClock(device)
    before, begun = task.num_losses, clock.now()
    peaks = [peak.of(lambda: method.step(next(data))) for _ in range(period)]
    seconds, evaluations = (clock.now() - begun) / period, (task.num_losses - before) / period
    known = [p for p in peaks if p is not None]
    row = {
        "peak_bytes": max(known) if len(known) == period else None,
        "loss_evaluations": evaluations,
        "passes": _passes(method, evaluations),
    }
    return row, seconds


def _passes(method: Stepper, evaluations: float) -> float:
    """Passes of a step by the method's own count, else its loss evaluations."""
    own = getattr(method, "passes", None)
    return evaluations if own is None else own


def _time(setting: Setting, loaded: LoadedWorkload, method: Stepper, period: int) -> dict[str, Any]:
    """The method and plain in turns; in plain's own row two plain loops, whose ratio differs from 1 by noise."""
    workload, device, seed, seconds = setting
    other = load(workload, device, seed)
    plain = Plain(Task(other))
    plain.step(other.steps[0][:1])
    figures = in_turns(plain, method, loaded.forever(), device, seconds, period)
    return {**figures, "samples_per_second": workload.k * workload.batch / figures["seconds"]}


def _kernels(loaded: LoadedWorkload, recorded: WithTraffic, device: torch.device) -> dict[str, Any]:
    """Calls, bytes and seconds of every op in a step, and the bandwidth to compare them with."""
    for _ in range(0 if recorded.num_steps else 3):
        recorded.step(loaded.steps[0])
    dtype = next(loaded.model.parameters()).dtype
    return {"kernels": recorded.mean(), "bandwidth": kernel_traffic.bandwidth(loaded.numel, dtype, device)}


def _warm_up(device: torch.device) -> None:
    """A first backward and AdamW step start threads and load libraries, which are not to count as the contender's memory."""
    layer = torch.nn.Linear(8, 8, device=device)
    step = torch.randn(2, 4, 8, device=device)
    Plain(Task(LoadedWorkload(layer, lambda net, x: net(x).square().mean(), [], ""))).step(list(step))


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
        setting = Setting(Workload(**asked["workload"]), device, asked["seed"], asked["seconds"])
        contender = contenders.contender(asked["method"])
        torch.manual_seed(asked["seed"])
        return {"status": "ok", "reason": None, **measure(setting, contender)}
    except CommandError as error:
        return {"status": "failed", "reason": str(error)}
    except Exception as error:  # the other contenders are measured whatever this one raises
        return {"status": "failed", "reason": _failure(error)}


if __name__ == "__main__":
    found = main(sys.argv[1])
    print(MARK + json.dumps(found), flush=True)
    os._exit(0)  # skips the destructors of large models
