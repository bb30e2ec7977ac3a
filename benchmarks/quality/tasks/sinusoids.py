"""Few-shot regression: a sine of unknown amplitude and phase from ten points, after five steps of SGD on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.quality.sampling import Samples, deal, generator, mlp, seeded
from benchmarks.quality.task import Problem, Task

TASKS_A_STEP, BATCH = 5, 20
SHOTS, QUERIES, ADAPTATION_STEPS, ADAPTATION_LR = 10, 50, 5, 0.02
EVALUATED = 100  # sines of each set


class FewShot(NamedTuple):
    """Sines to adapt to: (sines, points, 1)."""

    support: Samples
    query: Samples


def sines(count: int, points: int, chance: torch.Generator) -> Samples:
    """x in [-5, 5], A sin(x + phase) with A in [0.1, 5] and phase in [0, pi]: both (count, points, 1)."""
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=chance)
    phase = torch.pi * torch.rand(count, 1, 1, generator=chance)
    x = 10 * torch.rand(count, points, 1, generator=chance) - 5
    return Samples(x, amplitude * torch.sin(x + phase))


def squared_error(model: nn.Module, batch: Samples) -> Tensor:
    """Its mean over a micro-batch; `mse_loss` fails under the nested vmap of `benchmarks.quality.replicas`."""
    return (model(batch.inputs) - batch.targets).square().mean()


def few_shot(chance: torch.Generator) -> FewShot:
    """Sines of a set."""
    points = sines(EVALUATED, SHOTS + QUERIES, chance)
    parts = [p.split([SHOTS, QUERIES], dim=1) for p in points]
    return FewShot(Samples(parts[0][0], parts[1][0]), Samples(parts[0][1], parts[1][1]))


def adapted_error(model: nn.Sequential, sets: FewShot) -> float:
    """The mean squared error at the query points, each sine after its own steps of SGD from the model's weights."""
    count = len(sets.query.targets)
    weights = [p.detach().expand(count, *p.shape) for p in model.parameters()]
    with torch.enable_grad():
        for _ in range(ADAPTATION_STEPS):
            weights = [w.detach().requires_grad_() for w in weights]
            # Sine i has weights i to itself: the gradient of the sum is each one's own.
            error = mse_loss(apart(model, weights, sets.support.inputs), sets.support.targets) * count
            slopes = torch.autograd.grad(error, weights)
            weights = [w - ADAPTATION_LR * slope for w, slope in zip(weights, slopes, strict=True)]
    with torch.no_grad():
        return mse_loss(apart(model, weights, sets.query.inputs), sets.query.targets).item()


def apart(model: nn.Sequential, weights: list[Tensor], x: Tensor) -> Tensor:
    """(sines, points, 1) through linear layers with weights of (sines, ...) and what is between them."""
    given = iter(weights)
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, bias = next(given), next(given)
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
        else:
            x = layer(x)
    return x


def evaluation(sets: dict[str, FewShot]) -> Callable[[Any], dict[str, float]]:
    """An `evaluate`: minus the squared error on each set; the network does not depend on its mode."""
    return lambda model: {name: -adapted_error(model, few) for name, few in sets.items()}


def sinusoids(seed: int, mixed: bool) -> Problem:
    """Five new sines a step, a micro-batch of 20 points each; with `mixed` the points of the five are dealt anew."""

    def micro_batches(step: int) -> list[Samples]:
        chance = generator(seed, 1, step)
        drawn = sines(TASKS_A_STEP, BATCH, chance)
        batches = [Samples(x, y) for x, y in zip(*drawn, strict=True)]
        return deal(batches, chance) if mixed else batches

    with seeded(seed):
        model = mlp(1, 40, 40, 1)
    return Problem(
        model=model,
        loss_fn=squared_error,
        micro_batches=micro_batches,
        sources=tuple(f"sine {i + 1} of the step" for i in range(TASKS_A_STEP)),
        evaluate=evaluation(
            {
                "validation": few_shot(generator(seed, 2)),
                "source_validation": few_shot(generator(seed, 3)),  # the sines of the test are as those of training
                "test": few_shot(generator(seed, 4)),
            }
        ),
    )


TASKS = (
    Task(
        name="sinusoids",
        title="a sine from 10 points after 5 steps of SGD, 5 sines a step; perceptron, AdamW (minus mean squared error)",
        problem=sinusoids,
        has_sources=True,
        optimizer="adamw",
        lrs=(3e-3, 6e-2),
        steps=400,
        evaluate_every=40,
        ramp=80,
    ),
)
