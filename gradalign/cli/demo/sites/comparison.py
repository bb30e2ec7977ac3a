"""The whole run: features of all texts, then every seed with all arms."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from gradalign.cli.demo.progress import ProgressBar
from gradalign.cli.demo.sites.data import SeedData, Texts
from gradalign.cli.demo.sites.record import summary
from gradalign.cli.demo.sites.settings import Settings
from gradalign.cli.demo.sites.train import train_seed
from gradalign.cli.workload.data import load_corpus

WORTH_PROCESSES = 200  # steps of all seeds; fewer take less than to start processes


def compare(settings: Settings, console: Console) -> dict[str, Any]:
    """The results of all seeds and their summary."""
    texts = Texts(load_corpus(None, "text", "label"), settings)
    with ProgressBar(console, len(texts.distinct), "texts") as progress:
        progress.describe("MiniLM features")
        kept = texts.encode(progress.reach)
        progress.reach(len(texts.distinct))
    data = {
        seed: texts.of_seed(kept, seed) for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
    }
    jobs = min(settings.seeds, os.cpu_count() or 1) if settings.seeds * settings.steps >= WORTH_PROCESSES else 1
    with ProgressBar(console, settings.steps * settings.seeds) as progress:
        progress.describe("training")
        arms = in_turn(settings, data, progress) if jobs == 1 else side_by_side(settings, data, progress, jobs)
    seeds = [{"seed": seed, "data": _counts(data[seed]), "arms": arms[seed]} for seed in data]
    return {"seeds": seeds, "summary": summary(seeds)}


def in_turn(settings: Settings, data: dict[int, SeedData], progress: ProgressBar) -> dict[int, dict[str, Any]]:
    """The arms of every seed, trained in this process."""
    with one_thread():
        return {seed: train_seed(settings, part, progress) for seed, part in data.items()}


def side_by_side(
    settings: Settings, data: dict[int, SeedData], progress: ProgressBar, jobs: int
) -> dict[int, dict[str, Any]]:
    """The same in several processes, a seed in each: arms that are compared alternate within one of them."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running: dict[Future[dict[str, Any]], int] = {
            pool.submit(_train_alone, settings, part): seed for seed, part in data.items()
        }
        try:
            for num, _ in enumerate(as_completed(running), 1):
                progress.reach(num * settings.steps)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found = {seed: future.result() for future, seed in running.items()}
    return {seed: found[seed] for seed in data}


class _Silent:
    """Progress that nobody sees."""

    def advance(self) -> None:
        """One step of all arms is done."""


def _train_alone(settings: Settings, data: SeedData) -> dict[str, Any]:
    with one_thread():
        return train_seed(settings, data, _Silent())


def _counts(data: SeedData) -> dict[str, int]:
    return {"train": sum(len(y) for _, y in data.train), "own": len(data.own[1]), "test": len(data.test[1])}


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: with 385 parameters a second one costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
