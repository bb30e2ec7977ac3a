"""The texts of one seed as features of a frozen encoder, with what their planted sentences say."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gradalign.cli.demo.sites.settings import Settings
from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import Corpus, Snippet
from gradalign.cli.workload.features import Features, features, standardised
from gradalign.cli.workload.sites import WORDINGS, Sites, planted, pool, split_sites

NUM_SITES = 2
SLACK = 150  # whole films go to one part, and each part takes the film that it is filled with whole

Pair = tuple[Tensor, Tensor]  # features, labels


class SeedData(NamedTuple):
    """What every arm of a seed gets; no film is in two of train, own and test.

    Attributes:
        train: a micro-batch for each site.
        mixed: the same texts, dealt to micro-batches of the same size without regard to the site.
        own: other texts, planted as at the sites.
        test: texts whose planted sentences are coins.
        points: (test, sites), 1 where the planted sentence points to class 1, else 0.
        seed: of the split, and of the order of the micro-batches in each step.
    """

    train: list[Pair]
    mixed: list[Pair]
    own: Pair
    test: Pair
    points: Tensor
    seed: int


class Texts:
    """All texts that seeds are drawn from, and their features.

    Args:
        corpus: labelled texts.
        settings: numbers of texts.

    Raises:
        CommandError: more texts than there are.
    """

    def __init__(self, corpus: Corpus, settings: Settings) -> None:
        self.sites = Sites(settings.wording, NUM_SITES, settings.reliability)
        self._settings = settings
        needed = NUM_SITES * settings.texts + 2 * settings.held_out + SLACK
        self.snippets = pool(corpus, needed)
        if len(self.snippets) < needed:
            raise CommandError(
                f"--texts, --held-out: expected a sum of at most {(len(self.snippets) - SLACK) // 2}; got "
                f"{settings.texts + settings.held_out}; take fewer"
            )
        found = {planted(s, self.sites, site) for s in self.snippets for site in (None, *range(NUM_SITES))}
        self.distinct = sorted(found)

    def encode(self, progress: Callable[[int], None]) -> Features:
        """Of all texts, by the frozen encoder or from the disk; `progress` is called with the number of texts done."""
        return features(self.distinct, self._settings.model, progress=progress)

    def of_seed(self, kept: Features, seed: int) -> SeedData:
        """The split of a seed, standardised over its training texts."""
        split = split_sites(self.snippets, NUM_SITES, self._settings.texts, self._settings.held_out, seed)
        parts = (
            [(s, site) for site, part in enumerate(split.train) for s in part],
            [(s, site) for site, part in enumerate(split.source_validation) for s in part],
            [(s, None) for s in (*split.test, *split.validation)],
        )
        rows = standardised(*(kept.of([planted(s, self.sites, site) for s, site in part]) for part in parts))
        labels = [torch.tensor([float(s.label) for s, _ in part]) for part in parts]
        (x, own, test), (y, own_y, test_y) = rows, labels
        return SeedData(
            _cut(x, y),
            _cut(x, y, torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))),
            (own, own_y),
            (test, test_y),
            torch.tensor([self._points(s) for s, _ in parts[2]]),
            seed,
        )

    def _points(self, snippet: Snippet) -> list[int]:
        """Which variant of each sentence a text of the test has."""
        sentences = planted(snippet, self.sites, None).removesuffix(snippet.text)
        return [int(pair[1] in sentences) for pair in WORDINGS[self.sites.wording][: self.sites.num]]


def _cut(x: Tensor, y: Tensor, order: Tensor | None = None) -> list[Pair]:
    """One micro-batch for each site, of equal size."""
    x, y = (x, y) if order is None else (x[order], y[order])
    return list(zip(x.chunk(NUM_SITES), y.chunk(NUM_SITES), strict=True))
