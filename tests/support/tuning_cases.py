"""Models that several tests of `gradalign.tuning` measure."""

import argparse

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradalign.cli import tune


def two_layers(activation=torch.tanh, k=8, dtype=torch.float64, seed=0):
    """A two-layer network with a curved loss, quick to differentiate: model, loss_fn, micro-batches."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Linear(16, 3)).to(dtype)
    batches = [(torch.randn(8, 6, dtype=dtype), torch.randint(3, (8,))) for _ in range(k)]

    def loss_fn(batch):
        x, y = batch
        return F.cross_entropy(model[1](activation(model[0](x))).to(torch.promote_types(dtype, torch.float32)), y)

    return model, loss_fn, batches


def minilm(asset, precision, radii, k):
    """What `gradalign tune --model minilm` measures: options, model, micro-batches.

    One probe against k - 1 anchors, 8 snippets each.
    """
    asset("minilm")
    asset("rotten-tomatoes")
    texts = {"csv": None, "text_column": "text", "label_column": "label", "k": k, "batch": 8, "seed": 0}
    model = {"model": "minilm", "precision": precision, "train": False}
    options = argparse.Namespace(**texts, **model, radii=radii, reference="double_backward", probe_fraction=1 / k)
    return options, *tune.load(options, torch.device("cpu"))
