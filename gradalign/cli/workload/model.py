"""The model: a pretrained text encoder, the mean of its token states, a linear classifier."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.cli.errors import CommandError
from gradalign.cli.workload import assets
from gradalign.cli.workload.data import Snippet

MAX_TOKENS = 64

Batch = dict[str, Tensor]


class Classifier(nn.Module):
    """logits = W mean_t(encoder(x)_t) + b, the mean over the tokens that are not padding."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) twice -> (batch, classes)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return self.head((states * mask).sum(1) / mask.sum(1))


def load_pretrained(name: str) -> tuple[Any, Any]:
    """Encoder and tokenizer.

    Args:
        name: "bert-tiny", "minilm", a directory, or a name on the Hugging Face hub. Only the last may use the network.

    Raises:
        CommandError: there is no such model, or it is not a text encoder.
    """
    path = assets.locate(name) if name in assets.MODELS else Path(name)
    local = path.is_dir()
    transformers = _import_transformers(offline=local)
    source = str(path) if local else name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Without the last, transformers asks on the terminal whether to run code that comes with a model.
            options = {"local_files_only": local, "trust_remote_code": False}
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            encoder = transformers.AutoModel.from_pretrained(source, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError) as error:
        raise CommandError(
            f"--model: expected bert-tiny, minilm, a directory or a Hugging Face name of a text encoder; got {name!r}: "
            f"{_first_line(error)}"
        ) from error
    except ImportError as error:
        raise CommandError(f"expected a transformers that can load {name}; got: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return _without_head(encoder), tokenizer


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    if "trust_remote_code" in text:  # transformers' advice is an option that there is not
        return "it comes with custom code; gradalign does not run code that comes with a model"
    return (text.splitlines() or [type(error).__name__])[0]


def _import_transformers(offline: bool) -> Any:
    if offline:  # read when transformers is imported
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _hide_own_kernels()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _without_head(model: Any) -> Any:
    """The encoder alone: no decoder, and no pooler, since `Classifier` takes the mean."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def _hide_own_kernels() -> None:
    """Keeps transformers from importing the folder `kernels/` of the source tree as the package of that name."""
    found, own = importlib.util.find_spec("kernels"), importlib.util.find_spec("gradalign.kernels")
    if found and own and found.origin and own.origin and os.path.samefile(found.origin, own.origin):
        sys.modules["kernels"] = None  # type: ignore[assignment]


class Collator:
    """Turns texts into padded tensors; they are tokenised once."""

    def __init__(self, tokenizer: Any, snippets: Sequence[Snippet], device: torch.device) -> None:
        self._pad = tokenizer.pad_token_id
        self._ids = tokenizer([s.text for s in snippets], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        self._labels = [s.label for s in snippets]
        self._device = device

    def __len__(self) -> int:
        return len(self._ids)

    def __call__(self, indices: Sequence[int]) -> Batch:
        """{"input_ids", "attention_mask"} of (batch, longest) and {"labels"} of (batch,), padded on the right."""
        rows = [self._ids[i] for i in indices]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self._pad] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        labels = torch.tensor([self._labels[i] for i in indices])
        return {
            "input_ids": ids.to(self._device),
            "attention_mask": mask.to(self._device),
            "labels": labels.to(self._device),
        }

    def by_length(self, size: int) -> list[Batch]:
        """All texts in batches of at most `size`, sorted by length to save padding."""
        order = sorted(range(len(self)), key=lambda i: len(self._ids[i]))
        return [self(order[i : i + size]) for i in range(0, len(order), size)]
