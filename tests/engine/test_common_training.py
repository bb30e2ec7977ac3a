"""What people train with and what works as it is: held against a difference of gradients taken by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

from gradalign import GradAlign

K, NUM_PROBES, WEIGHT = 8, 2, 0.03


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def gradient(model, loss_fn, batch):
    return flat(torch.autograd.grad(loss_fn(batch), list(model.parameters())))


def by_hand(model, loss_fn, data, radius):
    """The gradient of a step of `split` with "dot": central differences along the mean gradient of the anchors.

    Buffers are those that each pass of a step would find.
    """
    theta = flat(model.parameters()).detach().clone()
    anchors, probes = data[:-NUM_PROBES], data[-NUM_PROBES:]
    own = [gradient(model, loss_fn, b) for b in anchors]
    start = copy.deepcopy(list(model.buffers()))

    def at(shift):
        nn.utils.vector_to_parameters(theta + shift, model.parameters())
        for buffer, value in zip(model.buffers(), start, strict=True):
            buffer.data.copy_(value)
        return [gradient(model, loss_fn, b) for b in probes]

    shift = radius * nn.functional.normalize(sum(own), dim=0)
    above, below, here = at(shift), at(-shift), at(0 * shift)
    term = (sum(above) - sum(below)) / (2 * radius * NUM_PROBES)
    return sum(own + here) / K - WEIGHT * term, term


def step(model, loss_fn, data, radius, weight=WEIGHT):
    model.zero_grad()
    loss = GradAlign(model, weight, difference="central", radius=radius).backward(loss_fn, data)
    return loss, flat([p.grad for p in model.parameters()])


class Reader(nn.Module):
    """Log probabilities of five characters over time."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.rnn(x)[0]).log_softmax(-1)


def test_ctc_loss():
    torch.manual_seed(0)
    model = Reader().double()
    data = [(torch.randn(7, 3, 3).double(), torch.randint(1, 5, (3, 2))) for _ in range(K)]
    lengths = torch.full((3,), 7), torch.tensor([2, 1, 2])

    def loss_fn(b):
        return nn.functional.ctc_loss(model(b[0]), b[1], *lengths)

    expected, term = by_hand(model, loss_fn, data, 1e-3)
    _, found = step(model, loss_fn, data, 1e-3)
    assert (found - expected).norm() < 1e-4 * WEIGHT * term.norm()


class Quantized(nn.Module):
    """Weights and activations pass through fake quantization, whose observers follow the activations."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 2)
        self.of_weight, self.of_input = (
            FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, averaging_constant=0.3)
            for _ in range(2)
        )

    def forward(self, x):
        hidden = nn.functional.linear(self.of_input(x), self.of_weight(self.first.weight), self.first.bias)
        return self.second(torch.tanh(hidden))


def test_observers_of_quantization_aware_training():
    torch.manual_seed(0)
    model, data = Quantized(), [(torch.randn(4, 8), torch.randint(2, (4,))) for _ in range(K)]
    twins = [copy.deepcopy(model) for _ in range(2)]

    def loss_of(model):
        return lambda b: nn.functional.cross_entropy(model(b[0]), b[1])

    _, found = step(model, loss_of(model), data, 0.1)
    expected, term = by_hand(twins[0], loss_of(twins[0]), data, 0.1)
    assert (found - expected).norm() < 0.01 * WEIGHT * term.norm()
    for b in data:
        loss_of(twins[1])(b)
    for (name, buffer), right in zip(model.named_buffers(), twins[1].buffers(), strict=True):
        assert torch.equal(buffer, right), name


@pytest.mark.parametrize("weight", [0.0, WEIGHT])
def test_lbfgs_calls_the_step_as_its_closure(weight):
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    data = [(torch.randn(4, 4).double(), torch.randint(2, (4,))) for _ in range(K)]

    def trained(fill):
        model = copy.deepcopy(start)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
        losses = [
            optimizer.step(lambda: fill(model, lambda b: nn.functional.cross_entropy(model(b[0]), b[1])))
            for _ in range(2)
        ]
        return flat(model.parameters()).detach(), losses

    def with_aligner(model, loss_fn):
        return step(model, loss_fn, data, 1e-3, weight)[0]

    def in_a_loop(model, loss_fn):
        model.zero_grad()
        if weight:
            found, _ = by_hand(model, loss_fn, data, 1e-3)
            for p, g in zip(model.parameters(), found.split([p.numel() for p in model.parameters()]), strict=True):
                p.grad = g.view_as(p)
        losses = [loss_fn(b) for b in data]
        for loss in losses if not weight else ():
            (loss / K).backward()
        return torch.stack(losses).detach().mean()

    (found, losses), (expected, _) = trained(with_aligner), trained(in_a_loop)
    assert losses[1] < losses[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
