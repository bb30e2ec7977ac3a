"""One seed of the demo: its data, both arms, and everything measured on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import gradalign
from gradalign.cli.demo.backward import Backward, aligned_backward, plain_backward
from gradalign.cli.demo.reviews.arm import Arm
from gradalign.cli.demo.reviews.measure import alignment, peak_memory
from gradalign.cli.demo.reviews.record import seed_record
from gradalign.cli.demo.reviews.settings import Settings
from gradalign.cli.demo.reviews.train import Arms, Progress, train_equal_steps, train_equal_time
from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import Corpus
from gradalign.cli.workload.model import Batch, Classifier, Collator
from gradalign.cli.workload.sampling import flip_labels, shuffled_batches, split_by_group

EVALUATION_BATCH = 128
ALIGNMENT_BATCHES = 32  # with 8 of them the result would depend on a few texts


class SeedData:
    """The training and test texts of one seed as micro-batches.

    Args:
        corpus: all texts.
        tokenizer: of the model.
        settings: sizes of the sets and of the batches, label noise.
        seed: of the split, the noise and the order.
        device: of the tensors.
    """

    def __init__(self, corpus: Corpus, tokenizer: Any, settings: Settings, seed: int, device: torch.device) -> None:
        train, test = split_by_group(corpus, seed, settings.train_size, settings.test_size)
        noisy = flip_labels(train, settings.label_noise, len(corpus.classes), seed)
        self._train, self._test = Collator(tokenizer, noisy, device), Collator(tokenizer, test, device)
        self._k, self._batch, self._seed = settings.k, settings.batch, seed
        self.device = device
        self.test_batches = self._test.by_length(EVALUATION_BATCH)
        self.counts = {
            "train": len(train),
            "train_groups": len({s.group for s in train}),
            "test": len(test),
            "test_groups": len({s.group for s in test}),
        }

    def steps(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step, endless and the same for the same seed."""
        for indices in shuffled_batches(len(self._train), self._k * self._batch, self._seed):
            yield [self._train(indices[i : i + self._batch]) for i in range(0, len(indices), self._batch)]

    def alignment_batches(self) -> list[Batch]:
        """Fixed micro-batches of test texts that alignment is measured on: `ALIGNMENT_BATCHES`, or as many as there are."""
        num, total = max(2, min(ALIGNMENT_BATCHES, len(self._test) // self._batch)), len(self._test)
        return [self._test([i % total for i in range(j * self._batch, (j + 1) * self._batch)]) for j in range(num)]


def backward_factories(settings: Settings) -> dict[str, Callable[[nn.Module], Backward]]:
    """How each arm fills `.grad`, by the arm's name."""
    return {
        "adamw": plain_backward,
        "gradalign": aligned_backward(settings.weight, settings.warmup, **settings.aligner_options),
    }


def train_seed(settings: Settings, seed: int, model: Classifier, data: SeedData, progress: Progress) -> dict[str, Any]:
    """Trains both arms and measures them.

    Args:
        settings: of the run.
        seed: of the dropout; `model` and `data` have used it for initialisation, split and order.
        model: the model both arms start from; not changed.
        data: the texts of both arms.
        progress: advanced by one per step.

    Returns:
        The seed's part of the record.
    """
    factories = backward_factories(settings).values()
    arms = Arms(*(Arm(model, settings.lr, settings.warmup, seed, factory) for factory in factories))
    steps, held_out = data.steps(), data.alignment_batches()
    alignments = {"before": alignment(model, held_out)}
    train_equal_steps(arms, settings.steps, steps, data.test_batches, progress)
    alignments |= {"adamw": alignment(arms.plain.model, held_out), "gradalign": alignment(arms.aligned.model, held_out)}
    train_equal_time(arms, steps, data.test_batches, progress)
    return seed_record(seed, settings.steps, arms, alignments, data.counts)


def peak_memories(settings: Settings, model: Classifier, data: SeedData) -> dict[str, int]:
    """The peak memory of each arm in bytes."""
    micro_batches = next(data.steps())
    arm = functools.partial(Arm, model, settings.lr, settings.warmup, 0)
    return {
        name: peak_memory(functools.partial(arm, factory), micro_batches, data.device)
        for name, factory in backward_factories(settings).items()
    }


def check_aligner(settings: Settings, model: nn.Module) -> None:
    """Raises CommandError for options that `GradAlign` refuses; builds kernels where needed."""
    try:
        gradalign.GradAlign(model, weight=settings.weight, **settings.aligner_options)
    except ValueError as error:
        raise CommandError(str(error)) from error
