"""Squares and ellipses whose colour tells the shape, by a code of the domain's own, and tells nothing in the test.

After CdSprites in Shi et al., Gradient Matching for Domain Generalization, 2021, arXiv:2104.09937; the sprites, their size, the
network and every figure are our own.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.quality.sampling import (
    Samples,
    accuracies,
    cat,
    classification_loss,
    generator,
    mini_batches,
    seeded,
)
from benchmarks.quality.task import Problem, Task

SIDE = 16
TRAIN, SOURCE_VALIDATION, VALIDATION, TEST = 2000, 300, 500, 1000  # over all domains
BATCH, DRAWN = 16, 5
DOMAINS = (2, 5, 10, 20, 50)


def shapes(targets: Tensor, chance: torch.Generator) -> Tensor:
    """(n, 16, 16) from 0 to 1: a square (class 0) or an ellipse (class 1) of the same area, anywhere, of any size and angle."""
    n = len(targets)
    draw = torch.rand(4, n, 1, 1, generator=chance)
    x0, y0 = (SIDE - 1) / 2 + 3 * (draw[:2] - 0.5)
    half, angle = 2.5 + 1.5 * draw[2], torch.pi * draw[3]
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    u = (x - x0) * angle.cos() + (y - y0) * angle.sin()
    v = (y - y0) * angle.cos() - (x - x0) * angle.sin()
    square = torch.maximum(u.abs(), v.abs()) - half
    axes = 1.6 * half, 4 / (1.6 * torch.pi) * half  # pi a b = (2 half)^2
    ellipse = (((u / axes[0]) ** 2 + (v / axes[1]) ** 2).sqrt() - 1) * half
    outside = torch.where(targets.view(n, 1, 1) == 0, square, ellipse)
    return torch.sigmoid(-4 * outside)  # the edge is about a pixel wide


def painted(targets: Tensor, colours: Tensor, chance: torch.Generator) -> Samples:
    """Sprites of (n, 3, 16, 16) on black, each in its colour of (n, 3)."""
    return Samples(shapes(targets, chance).unsqueeze(1) * colours[:, :, None, None], targets)


def some_colours(n: int, chance: torch.Generator) -> Tensor:
    """(n, 3), none of them dark."""
    return 0.2 + 0.8 * torch.rand(n, 3, generator=chance)


def in_code(code: Tensor, n: int, chance: torch.Generator) -> Samples:
    """`n` sprites of a domain: the colour is code[class]."""
    targets = torch.arange(n) % 2
    return painted(targets, code[targets], chance)


def any_colour(n: int, chance: torch.Generator) -> Samples:
    """`n` sprites, each in a colour of its own."""
    return painted(torch.arange(n) % 2, some_colours(n, chance), chance)


def network() -> nn.Module:
    """Two convolutions of stride 2, then a linear layer: 2 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * (SIDE // 4) ** 2, 2),
    )


def sprites(num_domains: int, seed: int, mixed: bool) -> Problem:
    """`num_domains` domains with a pair of colours each; a step takes a micro-batch from each of at most five.

    Args:
        num_domains: N.
        seed: of the problem.
        mixed: deals a step's sprites to its micro-batches without regard to their domain.
    """
    codes = some_colours(2 * num_domains, generator(seed, 2)).view(num_domains, 2, 3)
    drawn = min(num_domains, DRAWN)
    training = [in_code(code, TRAIN // num_domains, generator(seed, 3, i)) for i, code in enumerate(codes)]
    held_out = [in_code(code, SOURCE_VALIDATION // num_domains, generator(seed, 4, i)) for i, code in enumerate(codes)]
    with seeded(seed):
        model = network()
    return Problem(
        model=model,
        loss_fn=classification_loss,
        micro_batches=mini_batches(training, BATCH, seed, mixed, drawn=drawn if drawn < num_domains else None),
        # Which domains a step draws changes; that each micro-batch has one to itself does not.
        sources=tuple(f"domain {i + 1} of the step" for i in range(drawn)),
        evaluate=accuracies(
            {
                "validation": any_colour(VALIDATION, generator(seed, 5)),
                "source_validation": cat(held_out),
                "test": any_colour(TEST, generator(seed, 6)),
            }
        ),
    )


TASKS = tuple(
    Task(
        name=f"sprites-{n}",
        title=f"sprites, {n} domains with a colour code each, any colour in the test; small CNN, AdamW",
        problem=partial(sprites, n),
        has_sources=True,
        optimizer="adamw",
        lrs=(3e-3, 6e-2),
        steps=100,
        evaluate_every=10,
        ramp=20,
    )
    for n in DOMAINS
)
