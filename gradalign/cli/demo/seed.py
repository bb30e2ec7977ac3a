"""One seed of the demo: split, batches, both arms, everything measured on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import gradalign
from gradalign.cli.demo import record as demo_record
from gradalign.cli.demo.arm import Arm, Backward, Batch, aligned_backward, plain_backward
from gradalign.cli.demo.measure import alignment, peak_memory
from gradalign.cli.demo.settings import Settings
from gradalign.cli.demo.train import Watcher, go_on, train
from gradalign.cli.errors import CommandError
from gradalign.cli.workload import data as demo_data
from gradalign.cli.workload.data import Corpus
from gradalign.cli.workload.model import Classifier, Collator

EVALUATION_BATCH = 128
HELD_OUT = 32  # micro-batches that alignment is measured on: of 8 alone, a few texts would decide


class Texts:
    """The training and test texts of one seed as micro-batches.

    Args:
        corpus: what to split.
        tokenizer: of the model.
        settings: sizes, label noise.
        seed: of the split, the noise and the order.
        device: of the tensors.
    """

    def __init__(self, corpus: Corpus, tokenizer: Any, settings: Settings, seed: int, device: torch.device) -> None:
        learned, held_out = demo_data.split(corpus, seed, settings.train_size, settings.test_size)
        noisy = demo_data.flip_labels(learned, settings.label_noise, len(corpus.classes), seed)
        self._train, self._test = Collator(tokenizer, noisy, device), Collator(tokenizer, held_out, device)
        self.device = device
        self._k, self._batch, self._seed = settings.k, settings.batch, seed
        self.test = self._test.by_length(EVALUATION_BATCH)
        self.counts = {
            "train": len(learned),
            "train_groups": len({s.group for s in learned}),
            "test": len(held_out),
            "test_groups": len({s.group for s in held_out}),
        }

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of every step, without end; the same for the same seed."""
        for indices in demo_data.batches(len(self._train), self._k * self._batch, self._seed):
            yield [self._train(indices[i : i + self._batch]) for i in range(0, len(indices), self._batch)]

    def held_out(self) -> list[Batch]:
        """Fixed micro-batches of test texts, `HELD_OUT` or as many as there are, on which alignment is measured."""
        num, total = max(2, min(HELD_OUT, len(self._test) // self._batch)), len(self._test)
        return [self._test([i % total for i in range(j * self._batch, (j + 1) * self._batch)]) for j in range(num)]


def makers(settings: Settings) -> dict[str, Callable[[Classifier], Backward]]:
    """How each arm fills `.grad`, by the arm's name."""
    return {
        "adamw": plain_backward,
        "gradalign": aligned_backward(settings.weight, settings.warmup, **settings.aligner_options),
    }


def train_seed(settings: Settings, seed: int, model: Classifier, texts: Texts, watcher: Watcher) -> dict[str, Any]:
    """Trains both arms and measures them.

    Args:
        settings: of the run.
        seed: of the dropout; initialisation, split and order are in `model` and `texts`.
        model: what both arms start from; left as it is.
        texts: what both arms see.
        watcher: told how far it is.

    Returns:
        The seed's part of the record.
    """
    plain, aligned = (Arm(model, settings.lr, settings.warmup, seed, make) for make in makers(settings).values())
    steps, held_out = texts.steps(), texts.held_out()
    alignments = {"before": alignment(model, held_out)}
    train(plain, aligned, settings.steps, steps, texts.test, watcher)
    alignments |= {"adamw": alignment(plain.model, held_out), "gradalign": alignment(aligned.model, held_out)}
    go_on(plain, aligned, steps, texts.test, watcher)
    return demo_record.seed_record(seed, settings.steps, plain, aligned, alignments, texts.counts)


def peak_memories(settings: Settings, model: Classifier, texts: Texts) -> dict[str, int]:
    """The peak memory of each arm in bytes."""
    micro_batches = next(texts.steps())
    return {
        name: peak_memory(
            functools.partial(Arm, model, settings.lr, settings.warmup, 0, make), micro_batches, texts.device
        )
        for name, make in makers(settings).items()
    }


def check_aligner(settings: Settings, model: nn.Module) -> None:
    """Raises CommandError, before any time is spent, for options that `GradAlign` refuses; builds kernels where needed."""
    try:
        gradalign.GradAlign(model, weight=settings.weight, **settings.aligner_options)
    except ValueError as error:
        raise CommandError(str(error)) from error
