"""`gradalign demo`: fine-tunes a pretrained text encoder with AdamW and with gradalign, and compares the two."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gradalign.cli import places
from gradalign.cli.demo import record as demo_record
from gradalign.cli.demo import seed as demo_seed
from gradalign.cli.demo.settings import Settings, add_settings, resolve
from gradalign.cli.workload import assets as demo_assets
from gradalign.cli.workload import data as demo_data
from gradalign.cli.workload.data import Corpus
from gradalign.cli.workload.model import Classifier, load_pretrained

if TYPE_CHECKING:
    from rich.console import Console


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `demo` and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="fine-tune a pretrained BERT with AdamW and with gradalign, and compare",
        description="Fine-tunes a pretrained text encoder with AdamW and with gradalign from the same weights, on the same "
        "batches, with the same dropout, and compares them at equal steps and at equal time. Writes demo.png and demo.json.",
    )
    add_settings(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), metavar="DIR", help="of plot and JSON (default: demo-out)"
    )


def run(args: argparse.Namespace) -> int:
    """Trains, prints the table, writes the plot and the JSON."""
    begun = time.perf_counter()
    settings = resolve(args)
    demo_assets.require_extras()
    from rich.console import Console

    from gradalign.cli.demo import plot as demo_plot  # with rich and matplotlib, which are known to be there by now
    from gradalign.cli.demo import report as demo_report

    console = Console()
    places.make_directory(args.out)
    seeds, memory = compare(settings, console)
    record = demo_record.run_record(asdict(settings), seeds, memory, time.perf_counter() - begun)
    demo_report.show(record, console)
    demo_plot.save_plot(record, args.out / "demo.png")
    (args.out / "demo.json").write_text(json.dumps(demo_record.as_json(record), indent=1, allow_nan=False) + "\n")
    console.print(
        f"  {args.out / 'demo.png'} and {args.out / 'demo.json'} written after {record['seconds']:.0f} s.",
        highlight=False,
    )
    return 0


def compare(settings: Settings, console: Console) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The records of all seeds, and the peak memory of each arm."""
    from gradalign.cli.demo.progress import Bar

    device = places.usable_device(settings.device)
    with console.status(f"loading {settings.model} and {settings.data}") as status:
        corpus = load_corpus(settings)
        encoder, tokenizer = load_pretrained(settings.model)
        status.update("preparing gradalign (its first use on a machine may build kernels)")
        demo_seed.check_aligner(settings, encoder.to(device))
    seeds: list[dict[str, Any]] = []
    memory: dict[str, int] = {}
    with Bar(console, settings.steps * settings.seeds) as bar:
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
            bar.name(f"seed {len(seeds) + 1} of {settings.seeds}")
            torch.manual_seed(seed)
            model = Classifier(encoder, encoder.config.hidden_size, len(corpus.classes)).to(device)
            texts = demo_seed.Texts(corpus, tokenizer, settings, seed, device)
            memory = memory or demo_seed.peak_memories(settings, model, texts)
            seeds.append(demo_seed.train_seed(settings, seed, model, texts, bar))
    return seeds, memory


def load_corpus(settings: Settings) -> Corpus:
    """The texts that the settings name."""
    if settings.csv is None:
        return demo_data.rotten_tomatoes(demo_assets.locate("rotten-tomatoes"))
    return demo_data.from_csv(Path(settings.csv), settings.text_column, settings.label_column, settings.group_column)
