"""The options that select model, texts and device."""

from __future__ import annotations

import argparse
from typing import Any

from gradalign.cli import options, places


def add_workload(parser: argparse._ActionsContainer) -> None:
    """Adds an option for each of them."""
    add = parser.add_argument
    add(
        "--model",
        default="bert-tiny",
        metavar="bert-tiny|minilm|PATH_OR_NAME",
        help="pretrained text encoder (default: bert-tiny)",
    )
    add("--csv", metavar="FILE", help="CSV file with your own texts, instead of the Rotten Tomatoes snippets")
    add("--text-column", metavar="NAME", help="column of --csv with the texts (default: text)")
    add("--label-column", metavar="NAME", help="column of --csv with the labels (default: label)")
    add("--k", type=options.count(2), default=8, metavar="N", help="number of micro-batches in a step (default: 8)")
    add("--batch", type=options.count(1), default=8, metavar="N", help="number of texts per micro-batch (default: 8)")
    add(
        "--device",
        default=places.default_device(),
        metavar="NAME",
        help=f"PyTorch device (default: {places.default_device()})",
    )


def fill_columns(args: argparse.Namespace, **defaults: Any) -> None:
    """Fills in the default columns of --csv; `defaults` are those of further options that need it.

    Raises:
        CommandError: a column was given without --csv.
    """
    instead = None if args.csv else "no --csv"
    options.fill_defaults(args, "--csv", instead, text_column="text", label_column="label", **defaults)
