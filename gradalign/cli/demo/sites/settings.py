"""The options of the two sites."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from gradalign.cli import options

SUMMARY = "film reviews from two sites with planted shortcuts, gradalign beside plain SGD, SAM and Reptile"
DEFAULTS: dict[str, Any] = {"texts": 600, "held_out": 600}


@dataclass(frozen=True)
class Settings:
    """All settings of a run; they are written to its JSON.

    Attributes:
        texts: for training, at each site.
        held_out: texts of films that training does not see: so many and half as many more, with coins, are the test; half as
            many, planted as in training, are the sites' own.
        seeds: number of paired runs, from `first_seed` on.
        warmup: steps over which the weight of an agreement rises linearly.
        reliability: fraction of a site's texts whose own planted sentence tells the label.
    """

    texts: int
    held_out: int
    steps: int
    seeds: int
    first_seed: int
    lr: float = 0.05
    warmup: int = 20
    wording: str = "cities"
    reliability: float = 0.99
    model: str = "minilm"
    task: str = "sites"


def add_settings(parser: argparse._ActionsContainer) -> None:
    """Adds the options of this task."""
    add = parser.add_argument
    add("--texts", type=options.count(2), metavar="N", help="training texts at each site (default: 600)")
    add(
        "--held-out",
        type=options.count(4),
        metavar="N",
        help="texts of films that are not trained on: these and half as many again are the test, whose planted sentences tell "
        "nothing; another half, planted as in training, measures the sites themselves (default: 600)",
    )


def resolve(args: argparse.Namespace) -> Settings:
    """The options with all defaults filled in."""
    return Settings(args.texts, args.held_out, args.steps or 100, args.seeds or 5, args.first_seed)
