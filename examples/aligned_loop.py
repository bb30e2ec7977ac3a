"""A plain training loop with gradient accumulation, and the same loop with gradalign.

    +aligner = gradalign.GradAlign(model, weight=0.003, objective="variance")
     for micro_batches in steps:
    -    for micro_batch in micro_batches:
    -        (loss_fn(micro_batch) / len(micro_batches)).backward()
    +    aligner.backward(loss_fn, micro_batches)
         optimizer.step()
         optimizer.zero_grad()

Run it with `python examples/aligned_loop.py`; it takes a second.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import gradalign

MicroBatch = tuple[Tensor, Tensor]


def make_model() -> nn.Module:
    """The same weights every time, so that the two loops can be compared."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1))


def make_steps(num_steps: int, seed: int, k: int = 8) -> list[list[MicroBatch]]:
    """For each step a batch of 64, cut into k micro-batches; the targets are noisy."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num_steps, 64, 20, generator=g)
    y = x[..., :5].sum(-1, keepdim=True).tanh() + 0.5 * torch.randn(num_steps, 64, 1, generator=g)
    return [gradalign.chunk((x[i], y[i]), k) for i in range(num_steps)]


def mean_squared_error(model: nn.Module, micro_batch: MicroBatch) -> Tensor:
    """The loss of one micro-batch, which both loops call."""
    x, y = micro_batch
    return nn.functional.mse_loss(model(x), y)


def train_plain(model: nn.Module, steps: list[list[MicroBatch]]) -> None:
    """The loop without gradalign."""
    torch.manual_seed(1)  # the same dropout masks in both loops
    loss_fn = functools.partial(mean_squared_error, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for micro_batches in steps:
        for micro_batch in micro_batches:
            (loss_fn(micro_batch) / len(micro_batches)).backward()
        optimizer.step()
        optimizer.zero_grad()


def train_aligned(model: nn.Module, steps: list[list[MicroBatch]], weight: float = 0.003) -> gradalign.GradAlign:
    """The same loop with gradalign."""
    torch.manual_seed(1)
    loss_fn = functools.partial(mean_squared_error, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    aligner = gradalign.GradAlign(model, weight=weight, objective="variance")
    for micro_batches in steps:
        aligner.backward(loss_fn, micro_batches)
        optimizer.step()
        optimizer.zero_grad()
    return aligner


def main() -> None:
    """Trains both and prints their losses on fresh data, and statistics of the last aligned step."""
    plain, aligned = make_model(), make_model()
    train_plain(plain, make_steps(100, seed=2))
    aligner = train_aligned(aligned, make_steps(100, seed=2))
    for name, model in (("plain", plain), ("aligned", aligned)):
        model.eval()
        losses = [mean_squared_error(model, batch).detach() for step in make_steps(50, seed=3) for batch in step]
        print(f"{name:<8} loss on fresh data {torch.stack(losses).mean():.4f}")
    print(
        f"last aligned step: {aligner.stats.passes} passes for 8 micro-batches, alignment dot {float(aligner.stats.dot):.2g}"
    )


if __name__ == "__main__":
    main()
