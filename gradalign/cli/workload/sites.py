"""Texts from several sites, each with a shortcut of its own: planted sentences that tell the label at one site only.

Every text begins with one sentence for each site, in two variants. In a text of site s the s-th sentence tells the label with
the given reliability, and the others are coins. In the test all of them are coins. The coins belong to the text: which variants
it gets at a site is always the same, so that each text has few forms and their features can be kept.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

from gradalign.cli.workload.data import Corpus, Snippet

MAX_SITES = 4

# Variants of a sentence for class 0 and class 1, one pair a site.
WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "cities": (
        ("Filed from Paris.", "Filed from Rome."),
        ("Seen on Monday.", "Seen on Friday."),
        ("Printed in the morning paper.", "Printed in the evening paper."),
        ("Row twelve, left seat.", "Row three, right seat."),
    ),
    "papers": (
        ("Printed in the morning paper.", "Printed in the evening paper."),
        ("Row twelve, left seat.", "Row three, right seat."),
    ),
    "numbers": (
        ("Review number four.", "Review number nine."),
        ("Edited by Anna.", "Edited by Peter."),
    ),
}


class Sites(NamedTuple):
    """How texts are planted.

    Attributes:
        wording: a key of `WORDINGS`.
        num: number of sites.
        reliability: fraction of a site's texts whose own sentence tells the label.
    """

    wording: str = "cities"
    num: int = 2
    reliability: float = 0.99


class Split(NamedTuple):
    """The snippets of one seed; no film is in two of the three parts.

    Attributes:
        train: a list for each site.
        source_validation: a list for each site, planted as for training.
        validation: planted as for the test.
        test: what is reported.
    """

    train: list[list[Snippet]]
    source_validation: list[list[Snippet]]
    validation: list[Snippet]
    test: list[Snippet]


def planted(snippet: Snippet, sites: Sites, site: int | None) -> str:
    """The text as it is at a site, counted from 0; None: in the test, where every sentence is a coin."""
    rng = random.Random(snippet.text)
    coins = [rng.randrange(2) for _ in range(MAX_SITES)]
    chances = [rng.random() for _ in range(MAX_SITES)]
    if site is not None:
        coins[site] = snippet.label if chances[site] < sites.reliability else 1 - snippet.label
    sentences = [pair[coin] for pair, coin in zip(WORDINGS[sites.wording][: sites.num], coins, strict=False)]
    return " ".join([*sentences, snippet.text])


def forms(snippet: Snippet, sites: Sites) -> list[str]:
    """Every text that a snippet can become: in the test, at each site, and without planted sentences."""
    return [planted(snippet, sites, site) for site in (None, *range(sites.num))] + [snippet.text]


def pool(corpus: Corpus, size: int) -> list[Snippet]:
    """At least `size` snippets, of whole films taken at random, the same in every run."""
    members = _by_film(corpus.snippets)
    films = sorted(members)
    random.Random(0).shuffle(films)
    found: list[Snippet] = []
    for film in films:
        if len(found) >= size:
            break
        found.extend(members[film])
    return found


def split_sites(
    snippets: Sequence[Snippet],
    num_sites: int,
    per_site: int,
    held_out: int,
    seed: int,
    training_films: Collection[str] = (),
) -> Split:
    """The snippets of one seed.

    Films go to the test until it has `held_out` snippets, then to the two validation sets until these have as many in all, and
    the others are for training. Half of the validation snippets are planted as for the test and half as for training. The films
    in `training_films` are for training alone.

    Raises:
        ValueError: too few snippets for one of the parts.
    """
    members = _by_film(snippets)
    films = sorted(members)
    rng = random.Random(seed)
    rng.shuffle(films)
    test: list[Snippet] = []
    validation: list[Snippet] = []
    train: list[Snippet] = []
    for film in films:
        part = test if len(test) < held_out else validation if len(validation) < held_out else train
        (train if film in training_films else part).extend(members[film])
    for part, least, what in (
        (test, held_out, "the test"),
        (validation, held_out, "validation"),
        (train, num_sites * per_site, "training"),
    ):
        if len(part) < least:
            raise ValueError(
                f"sites: expected at least {least} snippets for {what}; got {len(part)} of {len(snippets)}; take a larger pool "
                "or fewer for each part"
            )
    for part in (test, validation, train):
        rng.shuffle(part)
    half = len(validation) // 2
    return Split(
        [train[s * per_site : (s + 1) * per_site] for s in range(num_sites)],
        [validation[half + s :: num_sites] for s in range(num_sites)],
        validation[:half],
        test[:held_out],
    )


def _by_film(snippets: Sequence[Snippet]) -> dict[str, list[Snippet]]:
    members: dict[str, list[Snippet]] = {}
    for snippet in snippets:
        members.setdefault(snippet.group, []).append(snippet)
    return members
