"""`gradalign tune`: the error of finite differences over the radius, on the demo's models and texts or one's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import gradalign
from gradalign.cli import options, places
from gradalign.cli.demo import record as demo_record
from gradalign.cli.errors import CommandError
from gradalign.cli.workload import assets as demo_assets
from gradalign.cli.workload import data as demo_data
from gradalign.cli.workload.model import Classifier, Collator, load_pretrained

if TYPE_CHECKING:
    from gradalign.cli.demo.arm import Batch

PRECISIONS = ("float32", "bfloat16", "float16", "autocast")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `tune` and its options."""
    parser = subparsers.add_parser(
        "tune",
        help="measure the error of finite differences, and recommend a radius and a weight",
        description="Measures how far finite differences are from the Hessian-vector product over a sweep of radii, on a "
        "pretrained text encoder with a new classifier. Prints the table; writes tune.png and tune.json.",
    )
    add = parser.add_argument
    add("--model", default="bert-tiny", metavar="bert-tiny|minilm|PATH_OR_NAME", help="(default: bert-tiny)")
    add("--csv", metavar="FILE", help="your own texts instead of the Rotten Tomatoes snippets")
    add("--text-column", metavar="NAME", help="of --csv (default: text)")
    add("--label-column", metavar="NAME", help="of --csv (default: label)")
    add("--k", type=options.count(2), default=8, metavar="N", help="micro-batches (default: 8)")
    add("--batch", type=options.count(1), default=8, metavar="N", help="texts in a micro-batch (default: 8)")
    add(
        "--probe-fraction",
        type=options.share,
        default=0.25,
        metavar="SHARE",
        help="of the micro-batches, whose Hessians are measured (default: 0.25)",
    )
    add("--radii", type=options.positive, nargs="+", metavar="X", help="of the sweep (default: 0.0003 to 0.3)")
    add("--reference", choices=("auto", "double_backward", "richardson"), default="auto", help="(default: auto)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the parameters, or bf16 autocast of fp32 ones (default: float32)",
    )
    add("--train", action="store_true", help="with dropout, as in training (default: without)")
    add("--seed", type=options.count(0), default=0, metavar="N", help="of the texts and the classifier (default: 0)")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=default_device, metavar="NAME", help="(default: %(default)s)")
    add("--out", type=Path, default=Path("tune-out"), metavar="DIR", help="of plot and JSON (default: tune-out)")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes the plot and the JSON."""
    no_csv = None if args.csv else "no --csv"
    options.settle(args, "--csv", no_csv, text_column="text", label_column="label")
    demo_assets.require_extras()
    from rich.console import Console  # with the extras, which are known to be there by now

    console = Console()
    places.make_directory(args.out)
    device = places.usable_device(args.device)
    with console.status(f"loading {args.model}") as status:
        model, batches = load(args, device)
        status.update("measuring")
        result = measure(args, model, batches)
    print(result)
    result.plot(args.out / "tune.png")
    record = demo_record.as_json({"settings": settings(args), "result": result.as_dict()})
    (args.out / "tune.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(f"\n{args.out / 'tune.png'} and {args.out / 'tune.json'} written.")
    return 0


def settings(args: argparse.Namespace) -> dict[str, object]:
    """The options, for the record."""
    return {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name != "run"
    }


def load(args: argparse.Namespace, device: torch.device) -> tuple[Classifier, list[Batch]]:
    """The model in its precision and mode, and k micro-batches."""
    corpus = texts(args)
    needed = args.k * args.batch
    if len(corpus.snippets) < needed:
        raise CommandError(
            f"expected at least {needed} texts, --k times --batch; got {len(corpus.snippets)} in {corpus.name}; lower one"
        )
    encoder, tokenizer = load_pretrained(args.model)
    torch.manual_seed(args.seed)
    model = Classifier(encoder, encoder.config.hidden_size, len(corpus.classes))
    dtype = torch.float32 if args.precision == "autocast" else getattr(torch, args.precision)
    snippets, _ = demo_data.split(corpus, args.seed, needed, 0)
    collate = Collator(tokenizer, snippets, device)
    batches = [collate(range(i, i + args.batch)) for i in range(0, needed, args.batch)]
    return model.to(device, dtype).train(args.train), batches


def texts(args: argparse.Namespace) -> demo_data.Corpus:
    """The snippets, or those of --csv."""
    if args.csv is None:
        return demo_data.rotten_tomatoes(demo_assets.locate("rotten-tomatoes"))
    return demo_data.from_csv(Path(args.csv), args.text_column, args.label_column, None)


def measure(args: argparse.Namespace, model: Classifier, batches: list[Batch]) -> gradalign.TuningResult:
    """`gradalign.tune` with the options."""

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
