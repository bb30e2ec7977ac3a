from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from gradalign import GradAlign


def test_scaled_dot_product_attention_trains_where_double_backward_cannot():
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    batches = list(torch.randn(4, 2, 5, 8))

    def loss_fn(x):
        q = model(x)
        return F.scaled_dot_product_attention(q, q, q).square().mean()

    aligner = GradAlign(model, 0.1)
    aligner.backward(loss_fn, batches)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert float(aligner.stats.dot) != 0


SIMPLE = {"weight": 0.1}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"objective": "dots"},
            ValueError,
            "objective: expected one of 'cosine', 'dot', 'norm', 'variance'; got 'dots'",
        ),
        ({"normalize": "unit"}, ValueError, "normalize: expected one of"),
        ({"estimator": "all"}, ValueError, "estimator: expected one of"),
        ({"difference": "backward"}, ValueError, "difference: expected one of"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of"),
        ({"radius": float("nan")}, ValueError, "radius: expected a finite number above 0"),
        ({"radius": -0.1}, ValueError, "radius: expected a finite number above 0"),
        ({"radius": 0}, ValueError, "radius: expected a finite number above 0"),
        ({"radius": "big"}, TypeError, "radius: expected a number; got str"),
        ({"weight": float("nan")}, ValueError, "weight: expected a finite number"),
        ({"weight": None}, TypeError, "weight: expected a number"),
        ({"weight": True}, TypeError, "weight: expected a number"),
        ({"every": 0}, ValueError, "every: expected an integer of at least 1"),
        ({"every": 1.5}, TypeError, "every: expected an integer"),
        ({"probe_fraction": 0}, ValueError, "probe_fraction: expected a number above 0 and at most 1"),
        ({"probe_fraction": 1.5}, ValueError, "probe_fraction: expected a number above 0 and at most 1"),
        ({"params": []}, ValueError, "params: expected at least one parameter"),
        ({"params": [nn.Parameter(torch.zeros(2))]}, ValueError, "params: expected trainable parameters of the model"),
        ({"params": ["head"]}, TypeError, "params: expected parameters of the model; got str"),
    ],
)
def test_invalid_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        GradAlign(nn.Linear(2, 1), **(SIMPLE | options))
