"""Processes that train together, over gloo on the CPU.

A group of processes is started once and runs many functions: their start is what costs. They are forked from a server that has
imported torch already, and killed when one of them hangs.
"""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import runpy
import signal
import tempfile
from pathlib import Path

SECONDS = 60  # for one function, all ranks
TIMEOUT = datetime.timedelta(seconds=30)  # of a collective
SERVER = str(Path(__file__).with_name("rank_server.py"))
PRELOADED = [
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "triton",
    "gradalign.extension",
    "pytest",
]


class RankError(AssertionError):
    """A function failed on a rank."""


class Group:
    """Processes that run functions together.

    Args:
        num: how many.
        joined: whether they form a process group already.
        imports: modules that take seconds to import, which one process does for all.
    """

    def __init__(self, num: int, joined: bool = True, imports: tuple[str, ...] = ()) -> None:
        self.num = num
        self._joined = joined
        self._imports = imports
        self._processes: list = []
        self._pipes: list = []

    def run(self, function, *args, seconds=SECONDS):
        """`function(rank, *args)` on every rank; returns what they return, in order.

        The function is found by its file and name, and its arguments are pickled.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function.__code__.co_filename, function.__name__, args))
        deadline = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
        results, errors = [], []
        for rank, pipe in enumerate(self._pipes):
            left = 5 if errors else (deadline - datetime.datetime.now()).total_seconds()
            try:
                answered = pipe.poll(max(left, 0))
                ok, result = pipe.recv() if answered else (False, "no answer in time")
            except (EOFError, ConnectionError):
                ok, result = False, "the process has ended"
            results.append(result)
            if not ok:
                errors.append(f"rank {rank}: {result}")
        if errors:
            self.stop()
            raise RankError("\n".join(errors))
        return results

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        store = Path(tempfile.mkdtemp()) / "store"
        pipes = [context.Pipe() for _ in range(self.num)]
        values = {"num": self.num, "store": str(store), "timeout": TIMEOUT, "joined": self._joined}
        values |= {"imports": self._imports}
        for first in [0] if self._imports else range(self.num):
            theirs = [pipe for _, pipe in (pipes if self._imports else pipes[first : first + 1])]
            given = values | {"first": first, "pipes": theirs}
            process = context.Process(target=runpy.run_path, args=(SERVER, given, "server"), daemon=True)
            process.start()
            self._processes.append(process)
        for ours, theirs in pipes:
            theirs.close()
            self._pipes.append(ours)

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it leads a group, of those that it forked
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
