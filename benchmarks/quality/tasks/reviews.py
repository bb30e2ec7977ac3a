"""Real text with shortcuts: film reviews from several sites, on frozen features.

Rotten Tomatoes snippets, 1,000 for each site, each beginning with one planted sentence a site (`gradalign.cli.workload.sites`).
At site s the s-th sentence tells the label with the given reliability and the others are coins; in the test, whose films are
unseen, all are coins. No film that settings are chosen on is in a test. The classifier sees the mean-pooled states of a frozen
MiniLM, standardised over the training set.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.quality.task import TUNING_SEEDS, Problem, Task
from benchmarks.quality.tasks.mixing import as_micro_batches
from benchmarks.quality.tasks.shortcut import accuracy, classifier, loss_fn, together
from gradalign.cli.workload.data import Snippet, load_corpus
from gradalign.cli.workload.features import Features, features, standardised
from gradalign.cli.workload.sites import Sites, forms, planted, pool, split_sites

PER_SITE = 1000
HELD_OUT = 1200
POOL = 7000
TUNING = 2 * HELD_OUT + 100  # snippets whose films are held out on the tuning seeds alone
RELIABILITIES = (0.99, 0.9)
HIDDEN = 64


class Data(NamedTuple):
    """Pairs (features, labels), standardised; `train` one for each site, `clean_test` without planted sentences."""

    train: list[tuple[Tensor, Tensor]]
    source_validation: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    clean_test: tuple[Tensor, Tensor]


@lru_cache(maxsize=1)
def snippets(sites: Sites) -> list[Snippet]:
    """What all seeds are drawn from: more than one seed needs, so that they differ in films."""
    return pool(load_corpus(None, "text", "label"), POOL)


@lru_cache(maxsize=1)
def all_features(sites: Sites) -> Features:
    """Of every form of every snippet, at both reliabilities."""
    both = [sites._replace(reliability=r) for r in RELIABILITIES]
    return features([text for one in both for snippet in snippets(sites) for text in forms(snippet, one)])


def training_films(sites: Sites, seed: int) -> set[str]:
    """The films that are in no test and no validation set of a seed: what tuning seeds hold out is held out in no other."""
    all_snippets = snippets(sites)
    for_tuning = {s.group for s in all_snippets[:TUNING]}
    return {s.group for s in all_snippets} - for_tuning if seed in TUNING_SEEDS else for_tuning


@lru_cache(maxsize=4)
def data(sites: Sites, seed: int) -> Data:
    """All texts of a seed."""
    kept = all_features(sites)
    split = split_sites(snippets(sites), sites.num, PER_SITE, HELD_OUT, seed, training_films(sites, seed))

    def pair(part: list[Snippet], site: int | None) -> tuple[Tensor, Tensor]:
        labels = torch.tensor([float(s.label) for s in part])
        return kept.of([planted(s, sites, site) for s in part]), labels

    train = [pair(part, s) for s, part in enumerate(split.train)]
    others = [
        together([pair(part, s) for s, part in enumerate(split.source_validation)]),
        pair(split.validation, None),
        pair(split.test, None),
        (kept.of([s.text for s in split.test]), torch.tensor([float(s.label) for s in split.test])),
    ]
    scaled = standardised(together(train)[0], *(x for x, _ in others))
    parts = scaled[0].split([len(y) for _, y in train])
    return Data(
        [(x, y) for x, (_, y) in zip(parts, train, strict=True)],
        *((x, y) for x, (_, y) in zip(scaled[1:], others, strict=True)),
    )


def problem(sites: Sites, hidden: bool, seed: int, mixed: bool) -> Problem:
    """One seed: full batch, one micro-batch a site."""
    found = data(sites, seed)
    torch.manual_seed(seed)
    width = found.test[0].shape[1]
    return Problem(
        classifier(width, HIDDEN if hidden else 0),
        loss_fn,
        as_micro_batches(found.train, None, seed, mixed),
        tuple(f"site {s + 1}" for s in range(sites.num)),
        lambda model: {name: accuracy(model, getattr(found, name)) for name in Data._fields if name != "train"},
    )


def task(sites: Sites, hidden: bool = False) -> Task:
    """The task of these sites."""
    percent = round(100 * sites.reliability)
    kind = "one hidden layer" if hidden else "linear"
    wording = "" if sites.wording == "cities" else f"-{sites.wording}"
    other = "" if sites.wording == "cities" else f", other sentences ({sites.wording})"
    return Task(
        f"reviews-{sites.num}x{percent}{wording}{'-mlp' if hidden else ''}",
        f"film reviews, {sites.num} sites, planted sentences right {percent}%{other}, {kind} on frozen MiniLM features",
        partial(problem, sites, hidden),
        has_sources=True,
        optimizer="sgd",
        lrs=(0.02, 0.4),
        steps=100,
        evaluate_every=5,
        ramp=20,
    )


TASKS = (
    task(Sites("cities", 2, 0.99)),
    task(Sites("cities", 2, 0.9)),
    task(Sites("papers", 2, 0.99)),
    task(Sites("numbers", 2, 0.99)),
    task(Sites("cities", 3, 0.99)),
    task(Sites("cities", 4, 0.99)),
    task(Sites("cities", 2, 0.99), hidden=True),
)
