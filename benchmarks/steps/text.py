"""Real text of an exact length: review snippets of one class, joined and cut."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from gradalign.cli.workload import assets, data
from gradalign.cli.workload import model as pretrained


def tokenizer() -> Any:
    """MiniLM's, BERT's uncased vocabulary of 30,522 pieces: also for models that start from random weights."""
    return pretrained.load_pretrained("minilm")[1]


def labelled(tokenizer: Any, tokens: int, num: int, seed: int) -> list[tuple[list[int], int]]:
    """`num` rows of exactly `tokens` ids of real text and their class; snippets are used again only when all were used."""
    corpus = data.rotten_tomatoes(assets.locate("rotten-tomatoes"))
    rng = random.Random(seed)
    streams = {label: _stream(corpus, label, tokenizer, rng) for label in range(len(corpus.classes))}
    rows = []
    for i in range(num):
        label = i % len(streams)
        row = [tokenizer.cls_token_id]
        while len(row) < tokens:
            row += next(streams[label])
        rows.append((row[:tokens], label))
    return rows


def micro_batches(rows: list[tuple[list[int], int]], k: int, batch: int) -> list[list[dict[str, Tensor]]]:
    """Steps of k micro-batches of `batch` rows; no padding."""

    def stack(part: list[tuple[list[int], int]]) -> dict[str, Tensor]:
        ids = torch.tensor([ids for ids, _ in part])
        labels = torch.tensor([label for _, label in part])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    parts = [stack(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    return [parts[i : i + k] for i in range(0, len(parts), k)]


def _stream(corpus: data.Corpus, label: int, tokenizer: Any, rng: random.Random) -> Any:
    snippets = [s.text for s in corpus.snippets if s.label == label]
    while True:
        rng.shuffle(snippets)
        for snippet in snippets:
            yield tokenizer(snippet, add_special_tokens=False, truncation=True, max_length=512)["input_ids"]
