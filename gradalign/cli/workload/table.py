"""The rows of a CSV file, and the line of what is wrong in one."""

from __future__ import annotations

import bz2
import csv
import gzip
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

from gradalign.cli.errors import CommandError


class Row(NamedTuple):
    """The fields by their columns, and the line of the file in which they end; a short row lacks its last columns."""

    values: dict[str, str]
    line: int


class Table(NamedTuple):
    """What a CSV file holds."""

    columns: list[str]
    rows: list[Row]


def read_table(path: Path) -> Table:
    """All rows of a CSV file, .gz and .bz2 too; empty lines are left out.

    Raises:
        CommandError: it cannot be read, or a row has more fields than there are columns.
    """
    lines = 0
    try:
        with _open(path) as file:
            reader = csv.reader(file)
            columns: list[str] = []
            rows: list[Row] = []
            for fields in reader:
                lines = reader.line_num
                if not columns:
                    columns = fields
                elif fields:
                    rows.append(_row(path, columns, fields, lines))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise CommandError(
            f"--csv: expected a CSV file in UTF-8; got {path}, which cannot be read after line {lines}: {error}"
        ) from error
    return Table(columns, rows)


def _row(path: Path, columns: list[str], fields: list[str], line: int) -> Row:
    while len(fields) > len(columns) and not fields[-1]:
        fields = fields[:-1]
    if len(fields) > len(columns):
        raise CommandError(
            f"--csv: expected {len(columns)} columns in each row, as in the first line; got {path}, line {line}, which has "
            f"{len(fields)}; put a text with commas in quotes"
        )
    return Row(dict(zip(columns, fields, strict=False)), line)


def _open(path: Path) -> IO[str]:
    opener: Any = {".bz2": bz2.open, ".gz": gzip.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")
