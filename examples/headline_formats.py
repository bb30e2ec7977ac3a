"""Texts with their headlines: Gigaword's files, or a data set of the hub.

    FOLDER/train.article.txt, train.title.txt                    a text a line, and its headline in the same line
    FOLDER/valid.article.filter.txt, valid.title.filter.txt      the development set

The files may be in FOLDER/train, as they are published, and compressed (.gz).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import reading

from gradalign.cli.errors import CommandError

# Gigaword's own names of the articles and of their headlines.
FILES = {
    "train": ("train.article.txt", "train.title.txt"),
    "dev": ("valid.article.filter.txt", "valid.title.filter.txt"),
}
HUB_SPLITS = {"train": "train", "dev": "validation"}


class Pair(NamedTuple):
    """A text and its headline."""

    article: str
    title: str


def load(data: str, split: str, columns: tuple[str, str] = ("document", "summary")) -> tuple[list[Pair], int]:
    """The pairs of one split, and how many were left out because one half is empty.

    Args:
        data: a folder with Gigaword's files (.gz too) in it or in its folder `train`; a hub name, or a folder laid
            out like a data set there.
        split: "train" or "dev".
        columns: those of a hub data set with the texts and with the headlines.

    Raises:
        CommandError: a file is missing, two files differ in length, or a column is missing.
    """
    path = Path(data)
    if _first(path, FILES[split][0]):
        articles, titles = (_lines(path, name) for name in FILES[split])
        if len(articles) != len(titles):
            raise CommandError(
                f"--data: expected as many lines in {' and '.join(FILES[split])}; got {len(articles)} and {len(titles)}"
            )
        return _whole(zip(articles, titles, strict=True))
    rows = reading.load_rows(data, HUB_SPLITS[split], as_texts=True)
    if missing := set(columns) - set(rows.column_names):
        raise CommandError(f"--columns: expected some of {rows.column_names}; got {sorted(missing)}")
    return _whole(((row[columns[0]] or "").strip(), (row[columns[1]] or "").strip()) for row in rows)


def _whole(pairs: Iterable[tuple[str, str]]) -> tuple[list[Pair], int]:
    found = [Pair(*pair) for pair in pairs]
    kept = [pair for pair in found if all(pair)]
    return kept, len(found) - len(kept)


def _first(folder: Path, name: str) -> Path | None:
    """The file in the folder or in its `train`, as it is or compressed."""
    candidates = [parent / f"{name}{suffix}" for parent in (folder, folder / "train") for suffix in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _lines(folder: Path, name: str) -> list[str]:
    path = _first(folder, name)
    if path is None:
        raise CommandError(f"--data: expected {name} in {folder} or in its folder train; got neither")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        return [line.strip() for line in file]
