"""A few texts with headlines, written in Gigaword's format and in that of the hub."""

from __future__ import annotations

import gzip

from support.question_rows import write_lines

PAIRS = [("c a t s and dogs live here", "c a t s"), ("no d o g lives here", "d o g"), ("a b c is taught here", "a b c")]
FILES = {
    "train": ("train.article.txt", "train.title.txt"),
    "dev": ("valid.article.filter.txt", "valid.title.filter.txt"),
}


def write_gigaword(folder, compressed=False):
    """Its four files; the second pair of the training set has no headline."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in FILES.items():
        pairs = [PAIRS[0], ("a text without one", " "), *PAIRS[1:]] if split == "train" else PAIRS
        for name, lines in zip(names, zip(*pairs, strict=True), strict=True):
            text = "".join(f"{line}\n" for line in lines).encode()
            path = folder / (f"{name}.gz" if compressed else name)
            path.write_bytes(gzip.compress(text) if compressed else text)


def write_hub(folder, columns=("document", "summary")):
    """A folder laid out like a data set on the hub."""
    for split in ("train", "validation"):
        write_lines(folder / f"{split}.jsonl", [dict(zip(columns, pair, strict=True)) for pair in PAIRS])
