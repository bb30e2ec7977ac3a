"""The term where the parameters' dtype is coarser than the displacement, against float64."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from torch import nn
from torch.nn import functional as F  # noqa: N812

import gradalign
from gradalign.optim import AdamW


class Stored(nn.Module):
    """Parameters in a low precision, everything computed in float64: only displacement and gradients are rounded."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randn(64, 256, generator=generator) / 16, torch.randn(5, 64, generator=generator) / 8
        self.first, self.second = (nn.Parameter(w.bfloat16().to(dtype)) for w in (first, second))

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(x, self.first.double())), self.second.double())


class Bowl(nn.Module):
    """L_i = 2 ||w - c_i||^2, w of all magnitudes: every direction is as curved as any other, H = 4."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(4096, generator=generator) * 10 ** (-3 * torch.rand(4096, generator=generator))
        self.w = nn.Parameter(w.bfloat16().to(dtype))

    def forward(self, c):
        return 2 * (self.w.double() - c).square().sum()


def near(bowl):
    """Micro-batches of a `Bowl`: centres around its parameters."""
    return [bowl.w.detach().double() + 0.003 * torch.randn(4096, dtype=torch.float64) for _ in range(4)]


def fitted():
    """Micro-batches that `Stored` fits up to noise: curvature large against the gradient."""
    generator = torch.Generator().manual_seed(1)
    scale, clean = 4 * torch.arange(1, 257, dtype=torch.float64) ** -0.8, Stored()
    xs = [scale * torch.randn(16, 256, generator=generator, dtype=torch.float64) for _ in range(4)]
    noise = [0.1 * torch.randn(16, 5, generator=generator, dtype=torch.float64) for _ in range(4)]
    return [(x, clean(x).detach() + e) for x, e in zip(xs, noise, strict=True)]


def term_of(model, loss_fn, batches, radius, weight=8.0, **options):
    """The term against the float64 oracle: its relative error, the aligner, and delta.d / d.d of the displacement seen."""
    displaced: dict = {}

    def watching(batch):
        if aligner.displaced:
            displaced.update((p, p.detach().clone()) for p in model.parameters())
        return loss_fn(model, batch)

    aligner = gradalign.GradAlign(model, weight, radius=radius, check_replay=False, **options)
    aligner.backward(watching, batches)
    exact = type(model)()
    gbar, term, g, _ = oracle.term(
        exact, lambda batch: loss_fn(exact, batch), batches, "dot", "direction", oracle.split_pairs(len(batches), 1)
    )
    found = (gbar - torch.cat([p.grad.double().flatten() for p in model.parameters()])) / weight
    delta = torch.cat([(displaced[p].double() - p.detach().double()).flatten() for p in model.parameters()])
    direction = g[:-1].mean(0)
    return found, term, float(delta @ direction / direction.norm()) / radius, aligner


def squared_error(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("masters", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 0.025), (torch.bfloat16, 0.05), (torch.float16, 0.025)])
def test_the_term_is_that_of_the_float64_oracle(dtype, error, masters):
    model = Stored(dtype)
    optimizer = AdamW(model.parameters(), lr=1e-3, master_weights=True) if masters and dtype != torch.float64 else None
    found, term, _, aligner = term_of(model, squared_error, fitted(), 0.03, optimizer=optimizer)
    assert float((found - term).norm() / term.norm()) < error
    assert float(aligner.stats.displacement_cosine) > 0.95


@pytest.mark.parametrize(("dtype", "radius"), [(torch.bfloat16, 0.01), (torch.float16, 0.001)])
def test_the_difference_is_divided_by_the_length_achieved(dtype, radius):
    """Where curvature does not know which elements the dtype lets move, the term keeps its size."""
    model = Bowl(dtype)
    found, term, ratio, _ = term_of(model, lambda model, c: model(c), near(model), radius, weight=1.0)
    size = float(found @ term / (term @ term))
    assert ratio < 0.8
    assert size == pytest.approx(1, abs=0.05)
    assert abs(size * ratio - 1) > 5 * abs(size - 1)  # without the correction


@pytest.mark.filterwarnings("ignore:expected parameters that can represent")
def test_masters_make_the_rounding_of_the_displacement_unbiased():
    """round(master + d): an element moves with the probability that d reaches the next value; on average nothing is lost."""
    ratios = {}
    for masters in (False, True):
        model, optimizer = Bowl(torch.bfloat16), None
        if masters:
            optimizer = AdamW(model.parameters(), lr=1e-3, master_weights=True)
            ulp = 2.0 ** (torch.frexp(model.w.detach().float()).exponent - 8)
            optimizer.master(model.w).add_(0.99 * (torch.rand(4096) - 0.5) * ulp)  # anywhere that still rounds to w
        found = term_of(model, lambda model, c: model(c), near(model), 0.01, optimizer=optimizer)
        ratios[masters] = found[2]
    assert ratios[False] < 0.8
    assert ratios[True] == pytest.approx(1, abs=0.1)
