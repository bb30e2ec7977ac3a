"""`gradalign tune`: the error of finite differences over the radius, on a pretrained text encoder."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import gradalign
from gradalign.cli import options, places
from gradalign.cli.errors import CommandError
from gradalign.cli.workload import arguments, assets
from gradalign.cli.workload.data import load_corpus
from gradalign.cli.workload.model import Batch, Classifier, Collator, load_pretrained
from gradalign.cli.workload.sampling import split_by_group
from gradalign.tuning.tuner import REFERENCES

OUTPUTS = ("tune.json", "tune.png")
PRECISIONS = ("float32", "bfloat16", "float16", "autocast")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `tune` and its options."""
    parser = subparsers.add_parser(
        "tune",
        help="measure the error of finite differences, and recommend a radius and a weight",
        description="Measures the error of finite differences against the Hessian-vector product over a sweep of radii, on a "
        "pretrained text encoder with a new classifier. Prints the table; writes tune.png and tune.json. "
        + assets.needs(*assets.ASSETS),
    )
    arguments.add_workload(parser)
    add = parser.add_argument
    add(
        "--probe-fraction",
        type=options.fraction,
        default=0.25,
        metavar="FRACTION",
        help="fraction of the micro-batches whose Hessian-vector products are measured (default: 0.25)",
    )
    add("--radii", type=options.positive, nargs="+", metavar="X", help="radii of the sweep (default: 0.0003 to 0.3)")
    add(
        "--reference",
        choices=REFERENCES,
        default="auto",
        help="how the Hessian-vector product is computed; auto: by double backward where it can run (default: auto)",
    )
    add(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="dtype of the parameters, or bf16 autocast with fp32 parameters (default: float32)",
    )
    add("--train", action="store_true", help="training mode, with dropout (default: eval mode)")
    add("--seed", type=options.count(0), default=0, metavar="N", help="seed of texts and classifier (default: 0)")
    add(
        "--out",
        type=Path,
        default=Path("tune-out"),
        metavar="DIR",
        help="directory of plot and JSON (default: tune-out)",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes the plot and the JSON."""
    arguments.fill_columns(args)
    assets.require_extras()
    from rich.console import Console  # one of the extras
    from rich.text import Text

    console = Console(markup=False, emoji=False)  # a name with brackets is a name
    places.make_directory(args.out)
    check_outputs(args.out)
    device = places.usable_device(args.device)
    with console.status(Text(f"loading {args.model}")) as status:
        model, batches = load(args, device)
        status.update("measuring")
        result = measure(args, model, batches)
    print(result)
    places.write_json(args.out / "tune.json", {"settings": settings(args), "result": result.as_dict()})
    with places.whole_file(args.out / "tune.png") as part:
        result.plot(part)
    print(f"\n{args.out / 'tune.png'} and {args.out / 'tune.json'} written.")
    return 0


def check_outputs(directory: Path) -> None:
    """The files can be written, before the measurement whose results they hold.

    Raises:
        CommandError: a directory has the name of one.
    """
    for name in OUTPUTS:
        if (directory / name).is_dir():
            raise CommandError(
                f"--out: expected a directory where {name} can be written; got {directory}, where that is a directory; move "
                "it, or choose another --out"
            )


def settings(args: argparse.Namespace) -> dict[str, object]:
    """The options as plain values, for the JSON."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name != "run"
    }


def load(args: argparse.Namespace, device: torch.device) -> tuple[Classifier, list[Batch]]:
    """The model in the chosen precision and mode, and k micro-batches."""
    corpus = load_corpus(args.csv, args.text_column, args.label_column)
    needed = args.k * args.batch
    if len(corpus.snippets) < needed:
        raise CommandError(
            f"expected at least {needed} texts, --k times --batch; got {len(corpus.snippets)} in {corpus.name}; lower one"
        )
    encoder, tokenizer = load_pretrained(args.model)
    torch.manual_seed(args.seed)
    model = Classifier(encoder, encoder.config.hidden_size, len(corpus.classes))
    dtype = torch.float32 if args.precision == "autocast" else getattr(torch, args.precision)
    snippets, _ = split_by_group(corpus, args.seed, needed, 0)
    collate = Collator(tokenizer, snippets, device)
    batches = [collate(range(i, i + args.batch)) for i in range(0, needed, args.batch)]
    return model.to(device, dtype).train(args.train), batches


def measure(args: argparse.Namespace, model: Classifier, batches: list[Batch]) -> gradalign.TuningResult:
    """Runs `gradalign.tune` with the options."""

    def loss_fn(batch: Batch) -> Tensor:
        with torch.autocast(batch["labels"].device.type, torch.bfloat16, enabled=args.precision == "autocast"):
            logits = model(batch["input_ids"], batch["attention_mask"])
        return nn.functional.cross_entropy(logits.float(), batch["labels"])

    radii = {} if args.radii is None else {"radii": args.radii}
    try:
        return gradalign.tune(
            model, loss_fn, batches, reference=args.reference, probe_fraction=args.probe_fraction, **radii
        )
    except (ValueError, RuntimeError) as error:
        raise CommandError(str(error)) from error
