"""Rows of files, of folders and of data sets on the hub, and how many of them an example uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas
from datasets import Dataset, Features, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.csv.csv import CsvConfig

from gradalign.cli.errors import CommandError

BUILDERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text", ".parquet": "parquet"}
# pandas would take the words None, NA, null and others for missing values: labels and texts of people.
CSV_OPTIONS: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}


class Rows(NamedTuple):
    """How many rows, or what an example makes of them, are used, and how many are left out because something is missing."""

    used: int
    left_out: int = 0


def checked(counts: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """Prints the counts of each part of the data and returns them as plain data, for the record.

    Raises:
        CommandError: nothing of a part can be used.
    """
    for name, (used, left_out) in counts.items():
        if not used:
            raise CommandError(
                f"expected rows for {name}; got none that can be used, {left_out} without what is needed"
            )
        print(f"{name}: {used} used, {left_out} left out")
    return {name: count._asdict() for name, count in counts.items()}


def builder_of(path: str | Path) -> str | None:
    """How `datasets` reads a file of that name, which may be compressed; None where it cannot."""
    kinds = [BUILDERS[suffix] for suffix in Path(path).suffixes if suffix in BUILDERS]
    return kinds[-1] if kinds else None


def load_file(path: str | Path, as_texts: bool = False, **found: Any) -> Dataset:
    """Rows of a file in one of the formats of `BUILDERS`, possibly compressed. In CSV only an empty cell is a missing value.

    Args:
        path: of the file.
        as_texts: whether the cells of CSV are texts, all of them: a column of numbers with a word or an empty cell in it would
            be an error or other numbers.
        found: further arguments of `datasets.load_dataset`, such as `sample_by="document"` for text.

    Raises:
        CommandError: the file cannot be read.
    """
    kind = builder_of(path)
    if kind is None:
        raise CommandError(f"expected a file that ends in {', '.join(BUILDERS)}; got {path}")
    return _loaded(path, kind, data_files=str(path), split="train", as_texts=as_texts, **found)


def load_rows(data: str | Path, split: str, config: str | None = None, as_texts: bool = False) -> Dataset:
    """Rows of a split of a data set on the hub or in a local folder laid out like one there.

    Args:
        data: a folder or a hub name.
        split: "train", "validation" or "test".
        config: of a data set with several.
        as_texts: as in `load_file`.

    Raises:
        CommandError: there is no such data set, it cannot be read, or it is a file, which would serve as every split.
    """
    if Path(data).is_file():
        raise CommandError(
            f"--data: expected a folder or a hub name, which has the split {split}; got {data}, a file, which is one split; "
            "put it into a folder beside a file of the other split, such as train.csv and validation.csv, and give the folder"
        )
    return _loaded(data, str(data), config, split=split, as_texts=as_texts)


def load_part(data: str | Path, split: str, config: str | None = None, as_texts: bool = False) -> Dataset:
    """Rows of a file that is all of a part, else of that split of a folder or a data set on the hub."""
    return load_file(data, as_texts) if Path(data).is_file() else load_rows(data, split, config, as_texts)


def _loaded(data: str | Path, *where: Any, split: str, as_texts: bool, **found: Any) -> Dataset:
    try:
        builder = load_dataset_builder(*where, **found)
        if isinstance(builder.config, CsvConfig):  # of a folder or on the hub too
            found |= CSV_OPTIONS
            if as_texts and builder.info.features is None:
                found["features"] = _texts(builder.config)
        return load_dataset(*where, split=split, **found)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: a data set that is a script
        raise CommandError(
            f"expected a file, a folder or a hub name of a data set; got {str(data)!r}: {first_line(error)}"
        ) from error


def _texts(config: CsvConfig) -> Features:
    """A text for each column of the first file."""
    first = next(iter(config.data_files.values()))[0]
    header = pandas.read_csv(first, sep=config.sep, nrows=0).columns
    return Features({name: Value("string") for name in header})


def validation_of(train: str, validation: str | None) -> str:
    """What to validate on: `validation`, else the split of that name of `train`.

    Raises:
        CommandError: `train` is a file, which has no other split.
    """
    if validation is None and Path(train).is_file():
        raise CommandError(f"--validation: expected a file beside {train}, which is one split; got none")
    return train if validation is None else validation


def first_line(error: BaseException) -> str:
    """Of the message of what caused it; its name, where it has none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
