"""Jobs on several processes of one thread each; rows reach the disk as they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import rows
from benchmarks.quality.task import Task
from benchmarks.quality.training import Job, run
from benchmarks.record import append_row


class Pool:
    """Measures what has no row yet.

    Args:
        task: whose jobs they are.
        file: of its rows.
        num: processes.
    """

    def __init__(self, task: Task, file: Path, num: int) -> None:
        self._task, self._file = task, file
        self.found = rows.runs(rows.read(file))
        context = get_context("fork")  # the workers share what the task has loaded
        self._executor = ProcessPoolExecutor(num, context, initializer=torch.set_num_threads, initargs=(1,))
        self.measured = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self._executor.shutdown(cancel_futures=True)

    def measure(self, jobs: Sequence[Job], with_curve: bool) -> None:
        """The rows of all jobs are in `found`, and on the disk. A row of a tuning trial has no curve."""
        missing = [job for job in jobs if job not in self.found]
        futures = {self._executor.submit(_run, self._task.name, job, with_curve): job for job in missing}
        for future in as_completed(futures):
            row = future.result()
            append_row(self._file, row)
            self.found[futures[future]] = row
            self.measured += 1


def _run(task: str, job: Job, with_curve: bool) -> dict[str, Any]:
    from benchmarks.quality.tasks import TASKS

    return run(TASKS[task], job, with_curve)
