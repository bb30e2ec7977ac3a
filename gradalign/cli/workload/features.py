"""Features of texts from a frozen pretrained encoder, computed once and kept on the disk."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from gradalign.cli import places
from gradalign.cli.workload.assets import ASSETS
from gradalign.cli.workload.data import Snippet
from gradalign.cli.workload.model import MAX_TOKENS, Collator, load_pretrained
from gradalign.extension import cache

BATCH = 64


class Features:
    """The features of some texts, by text.

    Args:
        texts: in the order of the rows.
        rows: float32 (texts, width), the mean over the tokens of the encoder's last states.
    """

    def __init__(self, texts: Sequence[str], rows: Tensor) -> None:
        self.rows = rows
        self._place = {text: i for i, text in enumerate(texts)}

    def of(self, texts: Sequence[str]) -> Tensor:
        """(texts, width)."""
        return self.rows[[self._place[text] for text in texts]]


def features(
    texts: Sequence[str],
    model: str = "minilm",
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Features:
    """The features of these texts, read from the disk where they were computed before.

    A file that is broken is computed again and replaced. Where nothing can be read or written, there is a warning and no error.

    Args:
        texts: repetitions count once.
        model: as in `load_pretrained`.
        folder: where they are kept; None: `features` in gradalign's cache folder.
        progress: called with the number of texts done.

    Raises:
        CommandError: there is no such model.
    """
    distinct = sorted(set(texts))
    name = f"{_key(distinct, model)}.pt"
    rows = None
    with _optional(name):
        rows = _read(_place(folder, name), len(distinct))
    if rows is None:
        rows = encode(distinct, model, progress)
        with _optional(name):
            _write(_place(folder, name), rows)
    return Features(distinct, rows)


def encode(texts: Sequence[str], model: str, progress: Callable[[int], None] = lambda n: None) -> Tensor:
    """(texts, width): the mean over the tokens that are not padding, in eval mode."""
    if not texts:
        raise ValueError("features: expected texts; got none")
    encoder, tokenizer = load_pretrained(model)
    encoder.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    collate = Collator(tokenizer, [Snippet(texts[i], 0, "") for i in order], torch.device("cpu"))
    means = []
    for start in range(0, len(order), BATCH):
        places_of_batch = range(start, min(start + BATCH, len(order)))
        batch = collate(places_of_batch)
        with torch.no_grad():
            states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        means.append((states * mask).sum(1) / mask.sum(1))
        progress(places_of_batch.stop)
    sorted_rows = torch.cat(means)
    rows = torch.empty_like(sorted_rows)
    rows[order] = sorted_rows
    return rows


def standardised(train: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """All of them minus the mean of the first, divided by its standard deviation, column by column."""
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    return tuple((x - mean) / std for x in (train, *others))


@contextmanager
def _optional(name: str) -> Iterator[None]:
    """The cache saves time and nothing else: whatever fails in it is a warning."""
    try:
        yield
    except Exception as error:  # torch.load raises of many kinds, depending on where a file was cut
        reason = next(iter(str(error).splitlines()), "")
        warnings.warn(
            f"features: expected a file {name} that can be read and written; got {type(error).__name__}: {reason}; computed "
            "again; set GRADALIGN_CACHE_DIR to a folder that can be written if this repeats",
            stacklevel=1,  # one line for reading and writing, so that the same reason is shown once
        )


def _place(folder: Path | None, name: str) -> Path:
    return (cache.directory() / "features" if folder is None else folder) / name


def _read(path: Path, num: int) -> Tensor | None:
    """The rows of `num` texts; None where they were not written yet."""
    if not path.exists():
        return None
    rows = torch.load(path, weights_only=True)
    if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != num:
        raise ValueError(f"something else than {num} rows")
    return rows


def _write(path: Path, rows: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with places.whole_file(path) as part:
        torch.save(rows, part)


def _key(texts: Sequence[str], model: str) -> str:
    """Another for other texts, another model or another cut."""
    what = json.dumps([ASSETS.get(model, model), MAX_TOKENS, *texts])
    return hashlib.sha256(what.encode()).hexdigest()[:32]
