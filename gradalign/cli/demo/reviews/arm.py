"""One arm of the comparison: a model in training, with its own optimizer and random number generator state."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gradalign.cli.demo.backward import Backward, ramp
from gradalign.cli.workload.model import Batch, Classifier


@dataclass
class Curve:
    """The loss and the time of each step, and (step, test accuracy) at some steps."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)


class Arm:
    """One model in training: its optimizer, its random number generator state, its curve.

    Args:
        model: copied, so that all arms start from the same weights.
        lr: the learning rate after the warm-up.
        warmup: steps over which the learning rate rises linearly.
        seed: of the random numbers (dropout).
        make_backward: model -> function that fills `.grad` from (loss_fn, micro_batches) and returns the mean loss.
    """

    def __init__(
        self, model: Classifier, lr: float, warmup: int, seed: int, make_backward: Callable[[nn.Module], Backward]
    ):
        self.model = copy.deepcopy(model).train()
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: ramp(step, warmup))
        self.backward = make_backward(self.model)
        self.curve = Curve()
        torch.manual_seed(seed)
        self._random_state = _random_state(self.device)

    def step(self, micro_batches: Sequence[Batch]) -> None:
        """One optimizer step, timed."""
        _set_random_state(self._random_state, self.device)
        start = _now(self.device)
        loss = self.backward(functools.partial(mean_loss, self.model), micro_batches)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.curve.seconds.append(_now(self.device) - start)
        self.scheduler.step()
        self.curve.losses.append(float(loss))
        self._random_state = _random_state(self.device)

    def evaluate(self, batches: Sequence[Batch]) -> None:
        """Adds the accuracy on `batches` in eval mode to the curve."""
        self.curve.accuracies.append((len(self.curve.losses), accuracy(self.model, batches)))


def mean_loss(model: Classifier, batch: Batch) -> Tensor:
    """The mean cross-entropy of one micro-batch, 0-dim."""
    return nn.functional.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])


def accuracy(model: Classifier, batches: Sequence[Batch]) -> float:
    """The fraction of correct predictions in eval mode; leaves the model in training mode.

    NaN where a logit is not finite: a decision by NaN is the first class, and would pass for an ordinary figure.
    """
    model.eval()
    with torch.no_grad():
        logits = [model(b["input_ids"], b["attention_mask"]) for b in batches]
    model.train()
    if not all(bool(torch.isfinite(part).all()) for part in logits):
        return math.nan
    correct = sum(int((part.argmax(1) == b["labels"]).sum()) for part, b in zip(logits, batches, strict=True))
    return correct / sum(len(b["labels"]) for b in batches)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
