"""Seconds of the host that one call of an op takes on many tensors, which have two elements each.

`python -m benchmarks.kernels.host [--backend native|triton] [--tensors N] [--rounds N]`. As many tensors as BERT-large has by
default. Ways are called in turns; figures are medians of the thread's CPU time, since the time of a clock on the wall is mostly
that of others where a machine is shared. Without a GPU, Triton's launches are written down instead of made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks import provenance
from benchmarks.kernels.workloads import bert
from benchmarks.tables import as_markdown, place
from gradalign.backends import dispatch, rows, signatures

Call = Callable[[], object]


class HostLists:
    """Parameters and everything of their size, two elements each."""

    def __init__(self, num_tensors: int, device: torch.device) -> None:
        def tensors() -> list[Tensor]:
            return [torch.ones(2, device=device) for _ in range(num_tensors)]

        self.p: list[Tensor] = [torch.nn.Parameter(t) for t in tensors()]
        self.backup, self.x, self.g, self.m, self.v = (tensors() for _ in range(5))
        self.steps = [torch.zeros((), device=device) for _ in range(num_tensors)]
        self.tiny, self.one = (torch.full((), value, device=device) for value in (1e-7, 1.0))

    def ops(self, backend: ModuleType) -> dict[str, Call]:
        """Every op of a backend."""
        p, backup, m, v, steps = self.p, self.backup, self.m, self.v, self.steps
        x, g, tiny = self.x, self.g, self.tiny
        scalars = (steps, self.one, tiny, tiny)
        adam = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
        return {
            "norm": lambda: backend.norm_dot(x),
            "norm_dot": lambda: backend.norm_dot(x, g),
            "perturb_": lambda: backend.perturb_(p, backup, x, tiny),
            "restore_": lambda: backend.restore_(p, backup),
            "swap_": lambda: backend.swap_(p, backup),
            "accumulate_": lambda: backend.accumulate_(backup, x, tiny),
            "combine_": lambda: backend.combine_(backup, x, g, tiny, tiny),
            "adamw_step_": lambda: signatures.call(backend, "adamw_step_", p, g, m, v, [], [], *scalars, **adam),
            "sgd_step_": lambda: signatures.call(backend, "sgd_step_", p, g, m, [], *scalars, momentum=0.9),
            "lamb_step_": lambda: signatures.call(backend, "lamb_step_", p, g, m, v, [], *scalars, **adam),
        }


def through_torch(call: Call) -> Call:
    """The call with lists handed over by torch, as where `gradalign._C` is not there."""
    names, reader = vars(rows), rows.reader

    def run() -> object:
        names["reader"] = lambda: None
        try:
            return call()
        finally:
            names["reader"] = reader

    return run


def thread_seconds(calls: Mapping[Any, Call], rounds: int, repeats: int = 3) -> dict[Any, float]:
    """Median CPU time of one call, the calls made in turns."""
    taken: dict[Any, list[float]] = {key: [] for key in calls}
    for number in range(rounds + 1):  # the first fills caches
        for key in list(calls)[:: 1 if number % 2 else -1]:
            begun = time.thread_time_ns()
            for _ in range(repeats):
                calls[key]()
            if number:
                taken[key].append((time.thread_time_ns() - begun) / repeats / 1e9)
    return {key: statistics.median(seconds) for key, seconds in taken.items()}


def loaded(name: str) -> tuple[ModuleType, torch.device]:
    """A backend, and the device to call it on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "triton" and device.type == "cpu":
        sys.path.append(str(Path(__file__).parents[2] / "tests"))
        from support.triton import no_gpu

        no_gpu.install()
    return dispatch.load(name), device


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("native", "triton"), default="native")
    parser.add_argument("--tensors", type=int, default=len(bert(1024, 24)))
    parser.add_argument("--rounds", type=int, default=60)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    backend, device = loaded(chosen.backend)
    lists = HostLists(chosen.tensors, device)
    ops = lists.ops(backend)
    calls = {(op, "rows"): call for op, call in ops.items()}
    calls |= {(op, "without"): through_torch(call) for op, call in ops.items()}
    with torch.no_grad():
        calls["", "foreach"] = lambda: torch._foreach_add_(lists.backup, lists.x, alpha=1e-7)
        seconds = thread_seconds(calls, chosen.rounds)
    print(place({**provenance.provenance(device.type, seed=0), "date": provenance.date()}))
    foreach = seconds["", "foreach"]
    body = [[op, *(f"{1e6 * seconds[op, way]:.0f}" for way in ("without", "rows"))] for op in ops]
    body.append(["torch._foreach_add_", "", f"{1e6 * foreach:.0f}"])
    print(as_markdown((f"{chosen.backend}, us of {chosen.tensors} tensors", "without gradalign._C", "with it"), body))
    return 0


if __name__ == "__main__":
    sys.exit(main())
