"""Training and test sets that share no film, label noise, and the order of the batches."""

from __future__ import annotations

import random
from collections.abc import Iterator

from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import Corpus, Snippet


def split_by_group(corpus: Corpus, seed: int, train_size: int, test_size: int) -> tuple[list[Snippet], list[Snippet]]:
    """Training and test snippets with no group in common, the same for the same seed.

    Groups go to the test set in random order until it has `test_size` snippets, all others to the training set. Both sets
    are then shuffled and cut to size.

    Raises:
        CommandError: one of the two would have too few snippets.
    """
    if (num := len(corpus.snippets)) < train_size + test_size:
        raise CommandError(
            f"expected at least {train_size + test_size} texts, {train_size} for training (--train-size) and {test_size} for "
            f"the test (--test-size); got {num} in {corpus.name}; lower both, or give more texts"
        )
    rng = random.Random(seed)
    members: dict[str, list[Snippet]] = {}
    for snippet in corpus.snippets:
        members.setdefault(snippet.group, []).append(snippet)
    groups = sorted(members)
    rng.shuffle(groups)
    test: list[Snippet] = []
    train: list[Snippet] = []
    for group in groups:
        (test if len(test) < test_size else train).extend(members[group])
    if len(train) < train_size or len(test) < test_size:
        raise CommandError(
            f"expected at least {train_size} snippets for training and {test_size} for the test, of different groups; got "
            f"{len(train)} and {len(test)} of {len(corpus.snippets)} in {corpus.name}; lower --train-size or --test-size"
        )
    rng.shuffle(train)
    rng.shuffle(test)
    return train[:train_size], test[:test_size]


def flip_labels(snippets: list[Snippet], fraction: float, num_classes: int, seed: int) -> list[Snippet]:
    """The same snippets with wrong labels for a random `fraction` of them."""
    rng = random.Random(seed)
    flipped = set(rng.sample(range(len(snippets)), round(fraction * len(snippets))))
    return [
        s._replace(label=(s.label + rng.randrange(1, num_classes)) % num_classes) if i in flipped else s
        for i, s in enumerate(snippets)
    ]


def shuffled_batches(num_snippets: int, size: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of `size` indices; each epoch is a new shuffle, and a batch may extend into the next epoch."""
    rng = random.Random(seed)
    pending: list[int] = []
    while True:
        while len(pending) < size:
            pending += rng.sample(range(num_snippets), num_snippets)
        yield pending[:size]
        pending = pending[size:]
