"""What all contenders train: a model, micro-batches, a loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.errors import CommandError
from benchmarks.steps import models, text

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NUM_STEPS = 3  # steps with different micro-batches, repeated in this order


@dataclass(frozen=True)
class Workload:
    """A model and the size of its steps.

    Attributes:
        model: a key of `MODELS`.
        k: micro-batches in a step.
        batch: samples in a micro-batch.
        size: tokens of a text; parameters of an MLP; features of a linear layer; pixels of a side of an image.
        dtype: of parameters and activations: "fp32" or "bf16".
    """

    model: str
    k: int
    batch: int
    size: int
    dtype: str = "fp32"

    @property
    def name(self) -> str:
        """The name in rows and tables."""
        size = f"{self.size:.0e}".replace("e+0", "e") if self.model == "mlp" else str(self.size)
        return f"{self.model}-{size}, k={self.k}, batch {self.batch}" + (
            f", {self.dtype}" if self.dtype != "fp32" else ""
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the row."""
        return {"name": self.name, **asdict(self)}


@dataclass
class LoadedWorkload:
    """A workload on a device: a model, its loss, the micro-batches of `NUM_STEPS` steps, and what data they are."""

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


def load(workload: Workload, device: torch.device, seed: int, eager: bool = False) -> LoadedWorkload:
    """The same weights and data for the same seed.

    Args:
        workload: what to make.
        device: where.
        seed: of weights that are not pretrained, and of the data.
        eager: attention written out, since fused attention has no second derivative.

    Raises:
        CommandError: no such model, or its weights or texts are not installed.
    """
    if workload.model not in MODELS:
        raise CommandError(f"workload: expected one of {', '.join(MODELS)}; got {workload.model!r}")
    torch.manual_seed(seed)
    loaded = MODELS[workload.model](workload, seed, eager)
    loaded.model.to(device, DTYPES[workload.dtype]).train()
    loaded.steps = [[_moved(b, device, DTYPES[workload.dtype]) for b in step] for step in loaded.steps]
    return loaded


def _mlp(workload: Workload, seed: int, eager: bool) -> LoadedWorkload:
    model = models.mlp(workload.size)
    width = models.mlp_width(workload.size)
    steps = [[torch.randn(workload.batch, width) for _ in range(workload.k)] for _ in range(NUM_STEPS)]
    return LoadedWorkload(model, lambda net, x: net(x).float().square().mean(), steps, "random numbers")


def _linear(workload: Workload, seed: int, eager: bool) -> LoadedWorkload:
    model = nn.Linear(workload.size, 2)
    steps = [
        [(torch.randn(workload.batch, workload.size), torch.randint(2, (workload.batch,))) for _ in range(workload.k)]
        for _ in range(NUM_STEPS)
    ]
    return LoadedWorkload(model, _classification, steps, "random features")


def _resnet(workload: Workload, seed: int, eager: bool) -> LoadedWorkload:
    steps = [
        [
            (torch.randn(workload.batch, 3, workload.size, workload.size), torch.randint(10, (workload.batch,)))
            for _ in range(workload.k)
        ]
        for _ in range(NUM_STEPS)
    ]
    return LoadedWorkload(models.resnet(), _classification, steps, "random images")


def _encoder(workload: Workload, seed: int, eager: bool) -> LoadedWorkload:
    model, tokenizer, what = models.encoder(workload.model, eager)
    windows = text.labelled(tokenizer, workload.size, workload.k * workload.batch * NUM_STEPS, seed)
    steps = text.micro_batches(windows, workload.k, workload.batch)
    return LoadedWorkload(model, _text_classification, steps, f"Rotten Tomatoes, {what}")


def _decoder(workload: Workload, seed: int, eager: bool) -> LoadedWorkload:
    windows = text.labelled(text.tokenizer(), workload.size, workload.k * workload.batch * NUM_STEPS, seed)
    model = models.decoder(workload.model, workload.size, eager)
    return LoadedWorkload(
        model, _next_token, text.micro_batches(windows, workload.k, workload.batch), "Rotten Tomatoes, random weights"
    )


MODELS: dict[str, Callable[[Workload, int, bool], LoadedWorkload]] = {
    "linear": _linear,
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
