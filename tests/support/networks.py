"""Small models and their micro-batches; every awkward kind of parameter and buffer is in one of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import spectral_norm


class Awkward(nn.Module):
    """Convolution, BatchNorm, dropout, tied, frozen and unused parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.3)
        self.encode = nn.Linear(4 * 16, 12)
        self.decode = nn.Linear(12, 12)
        self.tied = nn.Linear(12, 12)
        self.tied.weight = self.decode.weight
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.conv(x)))
        x = self.dropout(torch.tanh(self.encode(x.flatten(1))))
        x = torch.tanh(self.frozen(self.tied(torch.tanh(self.decode(x)))))
        return self.head(self.dropout(x))


class Spectral(nn.Module):
    """Power iteration moves buffers in every training forward, and the function depends on them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Linear(6, 8))
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.2)
        self.second = spectral_norm(nn.Linear(8, 3))

    def forward(self, x):
        return self.second(self.dropout(torch.tanh(self.norm(self.first(x)))))


class Counting(nn.Module):
    """Counts its forwards in a buffer it reassigns, and uses the count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.count = self.count + 1
        return torch.tanh(self.linear(x)) * (1 + 0.1 * self.count.to(x.dtype))


def make(kind=Awkward, k=4, rows=5, dtype=torch.float64, seed=0):
    """A model, its micro-batches and its loss function."""
    torch.manual_seed(seed)
    model = kind().to(dtype)
    shape = (2, 4, 4) if kind is Awkward else (6,)
    batches = [(torch.randn(rows, *shape, dtype=dtype), torch.randint(3, (rows,))) for _ in range(k)]

    def loss_fn(batch):
        x, y = batch
        return F.cross_entropy(model(x), y)

    return model, loss_fn, batches


def trainable(model):
    """The parameters that require grad, in the order of the model."""
    return [p for p in model.parameters() if p.requires_grad]


def state(model):
    """Bitwise copies of all parameters and buffers."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def same_state(model, expected):
    """Whether all parameters and buffers are bit for bit as `state` copied them."""
    return all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


def plain_loop(loss_fn, batches):
    """What every user writes today."""
    total = 0.0
    for batch in batches:
        loss = loss_fn(batch) / len(batches)
        loss.backward()
        total += float(loss.detach())
    return total
