"""The gradient noise scale (McCandlish et al. 2018) against a simulation whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradalign

N, ROWS, K, STEPS = 12, 4, 6, 800


@pytest.mark.parametrize("estimator", ["split", "prefix"])
@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_both_parts_are_unbiased(estimator, weight):
    """Loss theta . x with x ~ N(mu, sigma^2): g_i is the mean of the rows, E g = mu, tr Cov g_i = N sigma^2 / ROWS."""
    generator = torch.Generator().manual_seed(3)
    mean, sigma = torch.linspace(-1, 1, N, dtype=torch.float64), 1.5
    model = nn.Linear(N, 1, bias=False).double()
    aligner = gradalign.GradAlign(model, weight, estimator=estimator, telemetry=True)
    numerators, denominators = [], []
    for _ in range(STEPS):
        x = mean + sigma * torch.randn(K, ROWS, N, generator=generator, dtype=torch.float64)
        aligner.backward(lambda rows: model(rows).mean(), list(x))
        model.zero_grad()
        numerators.append(float(aligner.stats.noise_numerator))
        denominators.append(float(aligner.stats.noise_denominator))
    for values, expected in ((numerators, N * sigma**2 / ROWS), (denominators, float(mean @ mean))):
        values = torch.tensor(values)
        standard_error = float(values.std()) / STEPS**0.5
        assert abs(float(values.mean()) - expected) < 3.5 * standard_error
        assert standard_error < 0.03 * expected
