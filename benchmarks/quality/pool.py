"""Jobs on several processes of one thread each; rows reach the disk as they are measured."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import replicas, rows
from benchmarks.quality.rows import Row
from benchmarks.quality.task import Task
from benchmarks.quality.training import Job, run

SEEDS_AT_ONCE = 5


class Pool:
    """Measures what has no row yet.

    Args:
        task: whose jobs they are.
        file: of its rows.
        num: processes.

    Attributes:
        found: the runs by job.
        library: those of the library where `found` has replicas, by job.
        timed: how long the library takes, beside plain training, by job.
    """

    def __init__(self, task: Task, file: Path, num: int) -> None:
        self._task, self._file = task, file
        before = rows.read(file)
        self.found, self.library, self.timed = (rows.runs(before, kind) for kind in ("run", "library", "timing"))
        importlib.import_module("torch._dynamo")  # which vmap and optimizers import: once, not in every worker
        context = get_context("fork")  # the workers share what the task has loaded
        self._executor = ProcessPoolExecutor(num, context, initializer=torch.set_num_threads, initargs=(1,))
        self.measured = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self._executor.shutdown(cancel_futures=True)

    def measure(self, jobs: Sequence[Job], with_curve: bool) -> None:
        """The rows of all jobs are in `found`, and on the disk."""
        missing = [job for job in jobs if job not in self.found]
        if not self._task.replicas:
            return self._collect(
                [self._executor.submit(_one, self._task.name, job, with_curve) for job in missing], self.found
            )
        groups = [self._executor.submit(_many, self._task.name, group, with_curve) for group in grouped(missing)]
        return self._collect(groups, self.found)

    def measure_by_library(self, jobs: Sequence[Job]) -> None:
        """The rows of all jobs are in `library`, one by one through the public interface."""
        missing = [job for job in jobs if job not in self.library]
        self._collect(
            [self._executor.submit(_one, self._task.name, job, False, "library") for job in missing], self.library
        )

    def time(self, pairs: Sequence[tuple[Job, ...]]) -> None:
        """The rows of all jobs are in `timed`, each in turns with a job of plain training, while nothing else runs here."""
        for job, plain in pairs:
            if job not in self.timed:
                self._collect([self._executor.submit(_beside, self._task.name, job, plain)], self.timed)

    def _collect(self, futures: Sequence[Future[list[Row]]], into: dict[Job, Row]) -> None:
        for future in as_completed(futures):
            measured = future.result()
            rows.append(self._file, measured)
            into.update({rows.job_of(row): row for row in measured})
            self.measured += len(measured)


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that can be trained at once: the same settings on up to `SEEDS_AT_ONCE` seeds."""
    of_seed: dict[int, list[Job]] = {}
    for job in jobs:
        of_seed.setdefault(job.seed, []).append(job)
    alike: dict[tuple[Any, ...], list[list[Job]]] = {}
    for found in of_seed.values():
        alike.setdefault(tuple(job._replace(seed=0) for job in found), []).append(found)
    return [
        [job for found in group[start : start + SEEDS_AT_ONCE] for job in found]
        for group in alike.values()
        for start in range(0, len(group), SEEDS_AT_ONCE)
    ]


def _one(task: str, job: Job, with_curve: bool, kind: str = "run") -> list[Row]:
    return [run(_named(task), job, with_curve) | {"kind": kind}]


def _beside(task: str, job: Job, plain: Job) -> list[Row]:
    """The seconds of both, one after the other, the first of them in turns."""
    order = [plain, job] if job.seed % 2 else [job, plain]
    seconds = {done: run(_named(task), done, False)["seconds"] for done in order}
    return [{**job._asdict(), "kind": "timing", "seconds": seconds[job], "plain_seconds": seconds[plain]}]


def _many(task: str, jobs: list[Job], with_curve: bool) -> list[Row]:
    return replicas.run_all(_named(task), jobs, with_curve)


def _named(task: str) -> Task:
    from benchmarks.quality.tasks import TASKS

    return TASKS[task]
