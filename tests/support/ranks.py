"""Processes that train together, over gloo on the CPU.

A group of processes is started once and runs many functions: their start is what costs. They are forked from a server that has
imported torch already, and killed when one of them hangs.
"""

from __future__ import annotations

import datetime
import multiprocessing
import runpy
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
    """

    def __init__(self, num: int, joined: bool = True) -> None:
        self.num = num
        self._joined = joined
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
        for rank in range(self.num):
            ours, theirs = context.Pipe()
            values = {"rank": rank, "num": self.num, "store": str(store), "pipe": theirs, "timeout": TIMEOUT}
            values["joined"] = self._joined
            process = context.Process(target=runpy.run_path, args=(SERVER, values, "server"), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
