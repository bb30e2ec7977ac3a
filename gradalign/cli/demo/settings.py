"""The demo's options and their defaults, which depend on the model and the objective."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from gradalign.cli import options
from gradalign.cli.errors import CommandError
from gradalign.engine.step import NORMALIZATIONS
from gradalign.estimators import ESTIMATORS
from gradalign.objectives import OBJECTIVES
from gradalign.tuning import STARTING_WEIGHTS


class Preset(NamedTuple):
    """What suits a model on two CPU cores."""

    steps: int
    seeds: int
    lr: float


PRESETS = {"bert-tiny": Preset(steps=60, seeds=3, lr=5e-4), "minilm": Preset(steps=40, seeds=1, lr=1e-4)}
OTHER_MODELS = Preset(steps=40, seeds=1, lr=3e-5)


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on; goes into its JSON."""

    model: str
    data: str
    csv: str | None
    text_column: str
    label_column: str
    group_column: str | None
    train_size: int
    test_size: int
    label_noise: float
    steps: int
    seeds: int
    first_seed: int
    lr: float
    warmup: int
    k: int
    batch: int
    objective: str
    weight: float
    normalize: str
    estimator: str
    probe_fraction: float
    difference: str
    radius: float | None
    device: str

    @property
    def aligner_options(self) -> dict[str, Any]:
        """The arguments of `GradAlign` beside the model and the weight."""
        names = ("objective", "normalize", "estimator", "probe_fraction", "difference", "radius")
        return {name: getattr(self, name) for name in names}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each setting."""
    add = parser.add_argument
    add(
        "--model",
        default="bert-tiny",
        metavar="bert-tiny|minilm|PATH_OR_NAME",
        help="pretrained text encoder (default: bert-tiny)",
    )
    add("--csv", metavar="FILE", help="your own texts instead of the Rotten Tomatoes snippets")
    add("--text-column", metavar="NAME", help="of --csv (default: text)")
    add("--label-column", metavar="NAME", help="of --csv (default: label)")
    add("--group-column", metavar="NAME", help="of --csv: rows of one group are never in both training and test")
    add("--train-size", type=options.count(2), default=4000, metavar="N", help="training texts (default: 4000)")
    add("--test-size", type=options.count(1), default=1500, metavar="N", help="test texts (default: 1500)")
    add(
        "--label-noise",
        type=options.share,
        default=0.0,
        metavar="SHARE",
        help="give this share of the training texts a wrong label (default: 0)",
    )
    add(
        "--steps",
        type=options.count(1),
        metavar="N",
        help="optimizer steps of both arms (default: 60 for bert-tiny, else 40)",
    )
    add(
        "--seeds",
        type=options.count(1),
        metavar="N",
        help="paired runs; 3 or more give an interval (default: 3 for bert-tiny, else 1)",
    )
    add("--first-seed", type=options.count(0), default=0, metavar="N", help="the first of the seeds (default: 0)")
    add("--lr", type=options.positive, metavar="X", help="learning rate after the warm-up (default: by model)")
    add("--k", type=options.count(2), default=8, metavar="N", help="micro-batches in a step (default: 8)")
    add("--batch", type=options.count(1), default=8, metavar="N", help="texts in a micro-batch (default: 8)")
    add("--objective", choices=sorted(OBJECTIVES), default="dot", help="what is rewarded (default: dot)")
    add(
        "--weight",
        type=options.finite,
        metavar="X",
        help="of the objective, after a linear warm-up (default: by objective; untested for cosine)",
    )
    add(
        "--normalize",
        choices=NORMALIZATIONS,
        default="direction",
        help="what the weight multiplies (default: direction)",
    )
    add("--estimator", choices=sorted(ESTIMATORS), default="split", help="schedule of the passes (default: split)")
    add(
        "--probe-fraction",
        type=options.share,
        metavar="SHARE",
        help="of the micro-batches, in split (default: 0.25)",
    )
    add("--difference", choices=("forward", "central"), help="finite difference (default: forward)")
    add("--radius", type=options.positive, metavar="X", help="length of the displacement (default: gradalign's)")
    add(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        metavar="NAME",
        help="(default: %(default)s)",
    )


def resolve(args: argparse.Namespace) -> Settings:
    """The options, with the defaults that depend on others.

    Raises:
        CommandError: a weight that has no default, or an option that would do nothing.
    """
    no_csv, other = None if args.csv else "no --csv", f"--estimator {args.estimator}"
    options.settle(args, "--csv", no_csv, text_column="text", label_column="label", group_column=None)
    options.settle(args, "--estimator split", None if args.estimator == "split" else other, probe_fraction=0.25)
    exact = other if args.estimator == "exact" else None
    options.settle(args, "an estimator by finite differences", exact, difference="forward", radius=None)
    preset = PRESETS.get(args.model, OTHER_MODELS)
    steps = args.steps or preset.steps
    chosen = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    return Settings(
        **chosen
        | {
            "data": args.csv or "Rotten Tomatoes snippets",
            "steps": steps,
            "seeds": args.seeds or preset.seeds,
            "lr": args.lr or preset.lr,
            "warmup": min(30, steps // 4),
            "weight": starting_weight(args.objective, args.normalize) if args.weight is None else args.weight,
        }
    )


def starting_weight(objective: str, normalize: str) -> float:
    """The weight to start from.

    Raises:
        CommandError: none is known for this objective and normalisation.
    """
    if normalize != "direction" or objective not in STARTING_WEIGHTS:
        raise CommandError(
            f"expected --weight with --objective {objective} --normalize {normalize}; got none. Starting weights are known for "
            f"direction alone, where the weight is a length ({', '.join(f'{k} {v:g}' for k, v in STARTING_WEIGHTS.items())})"
        )
    return STARTING_WEIGHTS[objective]
