"""The whole run: every seed with both arms."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from gradalign.backends import dispatch
from gradalign.cli import places
from gradalign.cli.demo.progress import ProgressBar
from gradalign.cli.demo.reviews.record import summary
from gradalign.cli.demo.reviews.seed import SeedData, check_aligner, peak_memories, train_seed
from gradalign.cli.demo.reviews.settings import Settings
from gradalign.cli.workload.data import Corpus, load_corpus
from gradalign.cli.workload.model import Classifier, load_pretrained


def compare(settings: Settings, console: Console) -> dict[str, Any]:
    """The records of all seeds, their summary, the backend, and the peak memory of each arm in bytes."""
    device = places.usable_device(settings.device)
    corpus, encoder, tokenizer = _load(settings, console, device)
    seeds: list[dict[str, Any]] = []
    memory: dict[str, int] = {}
    with ProgressBar(console, settings.steps * settings.seeds) as progress:
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
            progress.describe(f"seed {len(seeds) + 1} of {settings.seeds}")
            torch.manual_seed(seed)
            model = Classifier(encoder, encoder.config.hidden_size, len(corpus.classes)).to(device)
            data = SeedData(corpus, tokenizer, settings, seed, device)
            memory = memory or peak_memories(settings, model, data)
            seeds.append(train_seed(settings, seed, model, data, progress))
    return {
        "backend": dispatch.backend("auto", device.type, frozenset({torch.float32})).NAME,
        "peak_memory_bytes": memory,
        "seeds": seeds,
        "summary": summary(seeds),
    }


def _load(settings: Settings, console: Console, device: torch.device) -> tuple[Corpus, Any, Any]:
    """Texts, encoder and tokenizer; the kernels are built and the options checked before anything is trained."""
    with console.status(Text(f"loading {settings.model} and {settings.data}")) as status:
        corpus = load_corpus(settings.csv, settings.text_column, settings.label_column, settings.group_column)
        encoder, tokenizer = load_pretrained(settings.model)
        status.update("preparing gradalign (its first use on a machine may build kernels)")
        check_aligner(settings, encoder.to(device))
    return corpus, encoder, tokenizer
