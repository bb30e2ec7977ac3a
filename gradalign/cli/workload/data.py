"""Labelled texts, from the Rotten Tomatoes snippets or a CSV file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from gradalign.cli.errors import CommandError
from gradalign.cli.workload import assets
from gradalign.cli.workload.table import Row, Table, read_table


class Snippet(NamedTuple):
    """One text, its class, and its group (a film), which must not be in both the training and the test set."""

    text: str
    label: int
    group: str


class Corpus(NamedTuple):
    """A data set without duplicate texts."""

    name: str
    classes: list[str]
    snippets: list[Snippet]


def load_corpus(csv_file: str | None, text_column: str, label_column: str, group_column: str | None = None) -> Corpus:
    """The texts of a CSV file, or the Rotten Tomatoes snippets where there is none.

    Raises:
        CommandError: the file cannot be used, or the snippets are not installed.
    """
    if csv_file is None:
        return rotten_tomatoes(assets.locate("rotten-tomatoes"))
    return from_csv(Path(csv_file), text_column, label_column, group_column)


def rotten_tomatoes(path: Path) -> Corpus:
    """Review snippets, fresh or rotten, grouped by film, without the plot summaries in the file."""
    rows = [row.values for row in read_table(path).rows if row.values["category"] != "plot"]
    return _corpus("Rotten Tomatoes", [(row["text"], row["category"], row["movie_name"]) for row in rows])


def from_csv(path: Path, text_column: str, label_column: str, group_column: str | None) -> Corpus:
    """A CSV file (.gz and .bz2 too) with a text column, a label column and possibly a group column.

    Rows without a text or a label are skipped.

    Raises:
        CommandError: the file does not exist or cannot be read, lacks a column, has a row that does not fit, or has fewer
            than two classes.
    """
    if not path.is_file():
        raise CommandError(f"--csv: expected a CSV file; got {str(path)!r}, which is not a file")
    table = read_table(path)
    names = {"--text-column": text_column, "--label-column": label_column, "--group-column": group_column}
    _check_columns(path, table.columns, names)
    usable = [row for row in table.rows if row.values.get(text_column) and row.values.get(label_column)]
    if group_column is not None:
        _check_groups(path, table, usable, group_column)
    corpus = _corpus(
        path.name,
        [
            (row.values[text_column], row.values[label_column], row.values[group_column] if group_column else str(i))
            for i, row in enumerate(usable)
        ],
    )
    if len(corpus.classes) < 2:
        raise CommandError(f"--label-column: expected at least two classes in {label_column!r}; got {corpus.classes}")
    return corpus


def _check_columns(path: Path, columns: list[str], names: dict[str, str | None]) -> None:
    for option, name in names.items():
        if name is not None and name not in columns:
            raise CommandError(
                f"{option}: expected one of the columns {', '.join(columns) or '(none)'} of {path}; got {name!r}"
            )


def _check_groups(path: Path, table: Table, rows: list[Row], group_column: str) -> None:
    for row in rows:
        if group_column not in row.values:
            raise CommandError(
                f"--group-column: expected a value of {group_column!r} in each row; got {path}, line {row.line}, which has "
                f"{len(row.values)} of the {len(table.columns)} columns; complete it"
            )


def _corpus(name: str, triples: list[tuple[str, str, str]]) -> Corpus:
    classes = sorted({label for _, label, _ in triples})
    parent: dict[str, str] = {}  # union-find over groups: two film names that share a snippet are one film
    first: dict[str, Snippet] = {}
    for text, label, group in triples:
        key = _normalised(text)
        if key and key not in first:
            first[key] = Snippet(text, classes.index(label), group)
        elif key:
            parent[_root(parent, group)] = _root(parent, first[key].group)
    return Corpus(name, classes, [s._replace(group=_root(parent, s.group)) for s in first.values()])


def _root(parent: dict[str, str], group: str) -> str:
    while parent.get(group, group) != group:
        group = parent[group]
    return group


def _normalised(text: str) -> str:
    """Two snippets are duplicates if their letters and digits agree, regardless of case, punctuation and spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))
