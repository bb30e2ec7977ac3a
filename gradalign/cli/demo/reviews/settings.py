"""The options of the clean fine-tuning and their defaults, some of which depend on the model and the objective."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradalign.cli import options, places
from gradalign.cli.errors import CommandError
from gradalign.cli.workload import arguments
from gradalign.engine.step import NORMALIZATIONS
from gradalign.estimators import ESTIMATORS
from gradalign.objectives import OBJECTIVES
from gradalign.tuning import STARTING_WEIGHTS


class Preset(NamedTuple):
    """Defaults for a model, chosen for two CPU cores."""

    steps: int
    seeds: int
    lr: float


PRESETS = {"bert-tiny": Preset(steps=60, seeds=3, lr=5e-4), "minilm": Preset(steps=40, seeds=1, lr=1e-4)}
OTHER_MODELS = Preset(steps=40, seeds=1, lr=3e-5)
SUMMARY = "clean fine-tuning of a pretrained text encoder on film reviews, AdamW without and with gradalign"
# None: filled in by `resolve`, which knows the other options.
DEFAULTS: dict[str, Any] = {
    "model": "bert-tiny",
    "csv": None,
    "text_column": None,
    "label_column": None,
    "group_column": None,
    "k": 8,
    "batch": 8,
    "device": places.default_device(),
    "train_size": 4000,
    "test_size": 1500,
    "label_noise": 0.0,
    "lr": None,
    "objective": "dot",
    "weight": None,
    "normalize": "direction",
    "estimator": "split",
    "probe_fraction": None,
    "difference": None,
    "radius": None,
}


@dataclass(frozen=True)
class Settings:
    """All settings of a run; they are written to its JSON."""

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
    task: str = "reviews"

    @property
    def aligner_options(self) -> dict[str, Any]:
        """The arguments of `GradAlign` other than the model and the weight."""
        names = ("objective", "normalize", "estimator", "probe_fraction", "difference", "radius")
        return {name: getattr(self, name) for name in names}


def add_settings(parser: argparse._ActionsContainer) -> None:
    """Adds an option for each setting."""
    arguments.add_workload(parser)
    parser.add_argument("--group-column", metavar="NAME", help="column of --csv: no group is in both training and test")
    _add_training(parser)
    _add_alignment(parser)


def _add_training(parser: argparse._ActionsContainer) -> None:
    add = parser.add_argument
    add("--train-size", type=options.count(2), metavar="N", help="training texts (default: 4000)")
    add("--test-size", type=options.count(1), metavar="N", help="test texts (default: 1500)")
    add(
        "--label-noise",
        type=options.fraction,
        metavar="FRACTION",
        help="fraction of the training texts that get a wrong label (default: 0)",
    )
    by_model = ", ".join(f"{preset.lr:g} for {model}" for model, preset in PRESETS.items())
    add(
        "--lr",
        type=options.positive,
        metavar="X",
        help=f"learning rate after the warm-up (default: {by_model}, else {OTHER_MODELS.lr:g})",
    )


def _add_alignment(parser: argparse._ActionsContainer) -> None:
    add = parser.add_argument
    add("--objective", choices=sorted(OBJECTIVES), help="alignment objective (default: dot)")
    add(
        "--weight",
        type=options.finite,
        metavar="X",
        help=f"weight of the term after a linear warm-up (default: {by_objective()}; has to be given with another --normalize "
        "than direction)",
    )
    add(
        "--normalize",
        choices=NORMALIZATIONS,
        help="length of the term: direction: that of H v, each displacement v having length 1; none: that of the gradient of "
        "the objective; gradient: that of the mean gradient (default: direction)",
    )
    add("--estimator", choices=sorted(ESTIMATORS), help="alignment estimator (default: split)")
    add(
        "--probe-fraction",
        type=options.fraction,
        metavar="FRACTION",
        help="fraction of the micro-batches that are probes in split (default: 0.25)",
    )
    add("--difference", choices=("forward", "central"), help="finite difference (default: forward)")
    add("--radius", type=options.positive, metavar="X", help="length of the displacement (default: 0.01)")


def resolve(args: argparse.Namespace) -> Settings:
    """The options with all defaults filled in.

    Raises:
        CommandError: the weight has no default, or an option would have no effect.
    """
    arguments.fill_columns(args, group_column=None)
    estimator = f"--estimator {args.estimator}"
    not_split = None if args.estimator == "split" else estimator
    options.fill_defaults(args, "--estimator split", not_split, probe_fraction=0.25)
    exact = estimator if args.estimator == "exact" else None
    options.fill_defaults(args, "an estimator that takes finite differences", exact, difference="forward", radius=None)
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


def by_objective() -> str:
    """The default weights, in words."""
    return ", ".join(f"{objective} {weight:g}" for objective, weight in STARTING_WEIGHTS.items())


def starting_weight(objective: str, normalize: str) -> float:
    """The default weight.

    Raises:
        CommandError: there is none for this objective and normalisation.
    """
    if normalize != "direction" or objective not in STARTING_WEIGHTS:
        raise CommandError(
            f"expected --weight with --objective {objective} --normalize {normalize}; got none. There are default weights for "
            f"--normalize direction only ({by_objective()})"
        )
    return STARTING_WEIGHTS[objective]
