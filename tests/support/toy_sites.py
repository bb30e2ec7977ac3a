"""Two sites on made-up texts, with features that show the planted sentences as loudly as the content."""

import torch

from gradalign.cli.demo.sites.data import Texts
from gradalign.cli.demo.sites.settings import Settings
from gradalign.cli.workload.data import Corpus, Snippet
from gradalign.cli.workload.features import Features

SETTINGS = Settings(texts=60, held_out=40, steps=15, seeds=1, first_seed=0, lr=0.4, warmup=3)


def toy_texts(settings=SETTINGS):
    """Films of 5 snippets; every snippet says its label, and one in ten says the other."""
    found = []
    for i in range(400):
        label = i % 2
        says = 1 - label if i % 10 in (3, 6) else label
        found.append(Snippet(f"snippet {i} is {('bad', 'good')[says]}", label, f"film {i // 5}"))
    return Texts(Corpus("toy", ["rotten", "fresh"], found), settings)


def toy_features(texts):
    """One column a sentence, twice as large as that of the content."""
    rows = [[2.0 * ("Rome" in t) - 1, 2.0 * ("Friday" in t) - 1, ("good" in t) - 0.5, 0.01 * len(t)] for t in texts]
    return Features(texts, torch.tensor(rows))
