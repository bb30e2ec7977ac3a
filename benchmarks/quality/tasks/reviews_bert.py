"""Real text with shortcuts and an encoder that is fine-tuned: BERT-tiny on the film reviews of `reviews`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality.sampling import Samples, accuracies, cat, classification_loss, mini_batches, seeded
from benchmarks.quality.task import Problem, Task
from benchmarks.quality.tasks import reviews
from gradalign.cli.workload.data import Snippet
from gradalign.cli.workload.model import Classifier, load_pretrained
from gradalign.cli.workload.sites import Sites, planted, split_sites

SITES = Sites("cities", 2, 0.99)
BATCH = 16
TOKENS = 40  # the planted sentences take about ten
VALIDATION, TEST = 400, 600  # snippets at most: an evaluation takes as long as tens of steps


class TextClassifier(nn.Module):
    """A `Classifier` of token numbers that are padded on the right."""

    def __init__(self, classifier: Classifier, padding: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, tokens) -> (batch, classes). Columns that are padding throughout are left out: they take time alone."""
        mask = ids != self.padding
        longest = int(mask.sum(1).max())
        return self.classifier(ids[:, :longest], mask[:, :longest].long())


@lru_cache(maxsize=1)
def pretrained() -> tuple[Any, Any]:
    """BERT-tiny and its tokenizer."""
    return load_pretrained("bert-tiny")


def tokens(texts: Sequence[str]) -> Tensor:
    """(texts, TOKENS), padded on the right."""
    _, tokenizer = pretrained()
    rows = tokenizer(list(texts), truncation=True, max_length=TOKENS, padding="max_length", padding_side="right")
    return torch.tensor(rows["input_ids"])


@lru_cache(maxsize=4)
def data(seed: int) -> tuple[list[Samples], dict[str, Samples]]:
    """What is trained on, site by site, and the other sets of a seed."""
    films = reviews.training_films(SITES, seed)
    split = split_sites(reviews.snippets(SITES), SITES.num, reviews.PER_SITE, reviews.HELD_OUT, seed, films)

    def samples(texts: list[str], part: list[Snippet]) -> Samples:
        return Samples(tokens(texts), torch.tensor([s.label for s in part]))

    def at(part: list[Snippet], site: int | None) -> Samples:
        return samples([planted(s, SITES, site) for s in part], part)

    held_out = [part[: VALIDATION // SITES.num] for part in split.source_validation]
    test = split.test[:TEST]
    return [at(part, site) for site, part in enumerate(split.train)], {
        "validation": at(split.validation[:VALIDATION], None),
        "source_validation": cat([at(part, site) for site, part in enumerate(held_out)]),
        "test": at(test, None),
        "clean_test": samples([s.text for s in test], test),
    }


def problem(seed: int, mixed: bool) -> Problem:
    """One seed: a micro-batch of each site, drawn anew in every step; every layer is trained, with its dropout."""
    training, others = data(seed)
    encoder, tokenizer = pretrained()
    with seeded(seed):
        classifier = Classifier(copy.deepcopy(encoder), encoder.config.hidden_size, 2)
    model = TextClassifier(classifier, tokenizer.pad_token_id)
    model.train()
    return Problem(
        model=model,
        loss_fn=classification_loss,
        micro_batches=mini_batches(training, BATCH, seed, mixed),
        sources=tuple(f"site {s + 1}" for s in range(SITES.num)),
        evaluate=accuracies(others),
    )


TASKS = (
    Task(
        name="reviews-2x99-bert",
        title="film reviews, 2 sites, planted sentences right 99%; BERT-tiny fine-tuned, AdamW",
        problem=problem,
        has_sources=True,
        optimizer="adamw",
        lrs=(1e-4, 2e-3),
        steps=120,
        evaluate_every=60,
        ramp=24,
        seeds=10,
        replicas=False,
    ),
)
