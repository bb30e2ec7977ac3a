"""The whole run: features of all texts, then every seed with all arms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from gradalign.cli.demo.progress import ProgressBar
from gradalign.cli.demo.sites.data import Texts
from gradalign.cli.demo.sites.record import summary
from gradalign.cli.demo.sites.settings import Settings
from gradalign.cli.demo.sites.train import train_seed
from gradalign.cli.workload.data import load_corpus


def compare(settings: Settings, console: Console) -> dict[str, Any]:
    """The results of all seeds and their summary."""
    texts = Texts(load_corpus(None, "text", "label"), settings)
    with ProgressBar(console, len(texts.distinct), "texts") as progress:
        progress.describe("MiniLM features")
        kept = texts.encode(progress.reach)
        progress.reach(len(texts.distinct))
    seeds: list[dict[str, Any]] = []
    with one_thread(), ProgressBar(console, settings.steps * settings.seeds) as progress:
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
            progress.describe(f"seed {len(seeds) + 1} of {settings.seeds}")
            data = texts.of_seed(kept, seed)
            counts = {"train": sum(len(y) for _, y in data.train), "own": len(data.own[1]), "test": len(data.test[1])}
            seeds.append({"seed": seed, "data": counts, "arms": train_seed(settings, data, progress)})
    return {"seeds": seeds, "summary": summary(seeds)}


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: with 385 parameters a second one costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
