import argparse

import pytest

from gradalign.cli.errors import CommandError
from gradalign.cli.workload import arguments


def parse(*argv):
    parser = argparse.ArgumentParser()
    arguments.add_workload(parser)
    args = parser.parse_args(argv)
    arguments.fill_columns(args)
    return args


def test_the_defaults_are_bert_tiny_and_the_snippets():
    args = parse()
    assert (args.model, args.csv, args.text_column, args.label_column) == ("bert-tiny", None, "text", "label")
    assert (args.k, args.batch) == (8, 8)


def test_columns_can_be_chosen_with_a_csv_only():
    assert parse("--csv", "my.csv", "--label-column", "stars").label_column == "stars"
    with pytest.raises(CommandError, match="--label-column: expected only with --csv; got no --csv"):
        parse("--label-column", "stars")
