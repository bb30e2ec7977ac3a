"""Features of texts from a frozen pretrained encoder, computed once and kept on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
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

    Args:
        texts: repetitions count once.
        model: as in `load_pretrained`.
        folder: where they are kept; None: `features` in gradalign's cache folder.
        progress: called with the number of texts done.

    Raises:
        CommandError: there is no such model.
    """
    distinct = sorted(set(texts))
    path = (cache.directory() / "features" if folder is None else folder) / f"{_key(distinct, model)}.pt"
    if path.exists():
        return Features(distinct, torch.load(path, weights_only=True))
    rows = encode(distinct, model, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    with places.whole_file(path) as part:
        torch.save(rows, part)
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


def _key(texts: Sequence[str], model: str) -> str:
    """Another for other texts, another model or another cut."""
    what = json.dumps([ASSETS.get(model, model), MAX_TOKENS, *texts])
    return hashlib.sha256(what.encode()).hexdigest()[:32]
