"""The work that all methods do: a model, micro-batches, a loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.steps import models, text
from gradalign.cli.errors import CommandError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NUM_STEPS = 3  # different batches that are gone through in turns


@dataclass(frozen=True)
class Work:
    """One point of the grid.

    Attributes:
        model: a key of `MODELS`.
        k: micro-batches in a step.
        batch: samples in a micro-batch.
        size: tokens of a text; parameters of an MLP; pixels of a side of an image.
        dtype: of parameters and activations: "fp32" or "bf16".
    """

    model: str
    k: int
    batch: int
    size: int
    dtype: str = "fp32"

    @property
    def name(self) -> str:
        """A name that tells works apart."""
        size = f"{self.size:.0e}".replace("e+0", "e") if self.model == "mlp" else str(self.size)
        return f"{self.model}-{size}, k={self.k}, batch {self.batch}" + (
            f", {self.dtype}" if self.dtype != "fp32" else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the row."""
        return {"name": self.name, **asdict(self)}


@dataclass
class Loaded:
    """A work made real on a device: one set of weights with its micro-batches."""

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    steps: list[list[Any]]
    data: str

    def forever(self) -> Iterator[list[Any]]:
        """The micro-batches of one step after the other."""
        return itertools.cycle(self.steps)

    @property
    def numel(self) -> int:
        """Trainable scalars."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def parameter_bytes(self) -> int:
        """Their size."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)


def load(work: Work, device: torch.device, seed: int, eager: bool = False) -> Loaded:
    """The same weights and data for the same seed.

    Args:
        work: what to make.
        device: where.
        seed: of weights that are not pretrained, and of the data.
        eager: attention written out, since fused attention has no second derivative.

    Raises:
        CommandError: no such model, or its weights or texts are not installed.
    """
    if work.model not in MODELS:
        raise CommandError(f"work: expected one of {', '.join(MODELS)}; got {work.model!r}")
    torch.manual_seed(seed)
    loaded = MODELS[work.model](work, seed, eager)
    loaded.model.to(device, DTYPES[work.dtype]).train()
    loaded.steps = [[_moved(b, device, DTYPES[work.dtype]) for b in step] for step in loaded.steps]
    return loaded


def _mlp(work: Work, seed: int, eager: bool) -> Loaded:
    model = models.mlp(work.size)
    width = models.mlp_width(work.size)
    steps = [[torch.randn(work.batch, width) for _ in range(work.k)] for _ in range(NUM_STEPS)]
    return Loaded(model, lambda net, x: net(x).float().square().mean(), steps, "random numbers")


def _resnet(work: Work, seed: int, eager: bool) -> Loaded:
    steps = [
        [(torch.randn(work.batch, 3, work.size, work.size), torch.randint(10, (work.batch,))) for _ in range(work.k)]
        for _ in range(NUM_STEPS)
    ]
    return Loaded(models.resnet(), _classification, steps, "random images")


def _encoder(work: Work, seed: int, eager: bool) -> Loaded:
    model, tokenizer, what = models.encoder(work.model, eager)
    windows = text.labelled(tokenizer, work.size, work.k * work.batch * NUM_STEPS, seed)
    steps = text.micro_batches(windows, work.k, work.batch)
    return Loaded(model, _text_classification, steps, f"Rotten Tomatoes, {what}")


def _decoder(work: Work, seed: int, eager: bool) -> Loaded:
    windows = text.labelled(text.tokenizer(), work.size, work.k * work.batch * NUM_STEPS, seed)
    model = models.decoder(work.model, work.size, eager)
    return Loaded(
        model, _next_token, text.micro_batches(windows, work.k, work.batch), "Rotten Tomatoes, random weights"
    )


MODELS: dict[str, Callable[[Work, int, bool], Loaded]] = {
    "mlp": _mlp,
    "resnet": _resnet,
    "bert-tiny": _encoder,
    "minilm": _encoder,
    "bert-base": _encoder,
    "bert-large": _encoder,
    "decoder-100m": _decoder,
    "decoder-1b": _decoder,
}


def _classification(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]).float(), batch[1])


def _text_classification(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(net(batch["input_ids"], batch["attention_mask"]).float(), batch["labels"])


def _next_token(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = net(batch["input_ids"][:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["input_ids"][:, 1:].flatten())


def _moved(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(batch, dict):
        return {name: _moved(value, device, dtype) for name, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_moved(value, device, dtype) for value in batch)
    return batch.to(device, dtype) if batch.is_floating_point() else batch.to(device)
