"""Real domains without planted shortcuts: is a text positive? Tweets, films, products, editorials, one of them held out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from benchmarks.quality import archives
from benchmarks.quality.sampling import (
    Samples,
    accuracies,
    cat,
    classification_loss,
    deal,
    generator,
    mlp,
    seeded,
    without_overlap,
)
from benchmarks.quality.task import Problem, Task
from gradalign.cli.workload.features import features

PER_DOMAIN = 3000  # texts of a domain that any seed can draw
TRAIN, SOURCE_VALIDATION, VALIDATION, TEST = 400, 300, 500, 1500


class Domain(NamedTuple):
    """Features of texts, whether each is positive, and the document that each is a part of."""

    name: str
    samples: Samples
    documents: Sequence[str]


@lru_cache(maxsize=1)
def domains() -> list[Domain]:
    """The four, in the order of `archives.VADER_DOMAINS`; a text rated 0 on average has no sign and is left out."""
    found: list[Domain] = []
    for name, texts in archives.vader().items():
        signed = list({t.text: t for t in texts if t.rating}.values())
        order = torch.randperm(len(signed), generator=generator(0, len(found)))[:PER_DOMAIN].tolist()
        chosen = [signed[i] for i in order]
        labels = torch.tensor([int(t.rating > 0) for t in chosen])
        written = [t.text for t in chosen]
        found.append(Domain(name, Samples(features(written).of(written), labels), [t.document for t in chosen]))
    return found


def problem(found: Sequence[Domain], seed: int, mixed: bool, sizes: Sequence[int]) -> Problem:
    """Domain `seed` mod their number is tested on, the others are trained on: logistic regression, full batch.

    Args:
        found: the domains.
        seed: of the problem.
        mixed: deals the texts to micro-batches without regard to their domain.
        sizes: texts to train on and to validate on in a training domain, to validate on and to test in the other.
    """
    train_size, source_size, validation_size, test_size = sizes
    held_out = seed % len(found)
    training, source_validation = [], []
    for i, domain in enumerate(found):
        chance = generator(seed, 2, i)
        if i == held_out:
            rows = without_overlap(domain.documents, (validation_size, test_size), chance)
            validation, test = (domain.samples.rows(index) for index in rows)
        else:
            rows = without_overlap(domain.documents, (source_size, train_size), chance)
            source_validation.append(domain.samples.rows(rows[0]))
            training.append(domain.samples.rows(rows[1]))
    together = cat(training).inputs
    center, scale = together.mean(0), together.std(0).clamp_min(1e-6)

    def standardised(samples: Samples) -> Samples:
        return Samples((samples.inputs - center) / scale, samples.targets)

    training = [standardised(samples) for samples in training]
    batches = deal(training, generator(seed, 3)) if mixed else training
    with seeded(seed):
        model = mlp(together.shape[1], 2)
    return Problem(
        model=model,
        loss_fn=classification_loss,
        micro_batches=lambda step: batches,
        sources=tuple(domain.name for i, domain in enumerate(found) if i != held_out),
        evaluate=accuracies(
            {
                "validation": standardised(validation),
                "source_validation": standardised(cat(source_validation)),
                "test": standardised(test),
            }
        ),
    )


def vader_problem(seed: int, mixed: bool) -> Problem:
    """The four domains of vaderSentiment."""
    return problem(domains(), seed, mixed, (TRAIN, SOURCE_VALIDATION, VALIDATION, TEST))


TASKS = (
    Task(
        name="vader",
        title="sentiment of tweets, films, products, editorials, one held out; linear on frozen MiniLM, 400 each, full batch",
        problem=vader_problem,
        has_sources=True,
        optimizer="sgd",
        lrs=(0.01, 0.2),
        steps=60,
        evaluate_every=6,
        ramp=12,
    ),
)
