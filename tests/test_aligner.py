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


def gradient_of(model, loss, micro_batches, weight, **options):
    aligner = GradAlign(model, weight, check_replay=False, **options)
    aligner.backward(lambda x: loss(model(x)), micro_batches)
    grads = torch.cat([p.grad.flatten().double() for p in model.parameters()])
    model.zero_grad()
    return grads, aligner.stats


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("objective", ["variance", "cosine"])
@pytest.mark.parametrize("estimator", ["leave_one_out", "split", "prefix", "exact"])
def test_gradients_that_are_one_leave_nothing_to_align(objective, estimator, dtype, backend):
    """What is left of their difference is rounding, which "direction" would blow up to a displacement like any other."""
    model = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 1)).to(dtype)
    same = [torch.randn(8, 20).to(dtype)] * 7
    options = {"objective": objective, "estimator": estimator, "backend": backend}
    expected, _ = gradient_of(model, lambda y: (y - 1).square().mean(), same, 0.0, **options)
    found, stats = gradient_of(model, lambda y: (y - 1).square().mean(), same, 1.0, **options)
    assert float((found - expected).norm() / expected.norm()) < torch.finfo(dtype).eps
    assert float(stats.term_norm) == 0


def test_one_parameter_alone_has_no_angle():
    """The displacement of the cosine is at a right angle to the gradient: in one dimension there is none."""
    model = nn.Linear(1, 1, bias=False)
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        micro_batches = [torch.randn(4, 1, dtype=dtype) for _ in range(4)]
        for estimator in ("split", "leave_one_out", "prefix", "exact"):
            _, stats = gradient_of(
                model, lambda y: (y - 1).square().mean(), micro_batches, 0.1, objective="cosine", estimator=estimator
            )
            assert float(stats.term_norm) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("estimator", ["split", "leave_one_out", "prefix", "symmetric", "exact"])
def test_a_term_that_is_rounding_is_not_rescaled_to_the_gradient(estimator, dtype):
    model = nn.Linear(1000, 10).to(dtype)  # a loss that is linear in it has no curvature
    micro_batches = [torch.randn(64, 1000).to(dtype) for _ in range(8)]
    _, stats = gradient_of(model, torch.mean, micro_batches, 0.3, normalize="gradient", estimator=estimator)
    assert float(stats.term_norm) == 0


@pytest.mark.parametrize("objective", ["dot", "variance"])
def test_many_micro_batches_in_16_bits_have_a_term(objective):
    """Their sum is coarse, not nothing."""
    model = nn.Linear(4, 1).bfloat16()
    micro_batches = [torch.randn(2, 4).bfloat16() for _ in range(2500)]
    _, stats = gradient_of(
        model, lambda y: (y - 1).square().mean(), micro_batches, 0.1, objective=objective, normalize="none"
    )
    assert float(stats.displacement_cosine) > 0.9
    assert stats.term_norm is None or float(stats.term_norm) > 0
    expected, _ = gradient_of(model, lambda y: (y - 1).square().mean(), micro_batches, 0.0)
    found, _ = gradient_of(model, lambda y: (y - 1).square().mean(), micro_batches, 1.0, objective=objective)
    assert float((found - expected).norm()) > 0.01


@pytest.mark.parametrize("estimator", ["split", "prefix"])
@pytest.mark.parametrize("case", ["normalize", "nearly equal", "one layer in 16 bits"])
def test_a_term_in_16_bits_that_is_more_than_rounding_stays(case, estimator):
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 10)).double()
    data = [torch.randn(32, 64).double() for _ in range(8)]
    options = {"estimator": estimator, "objective": "variance", "radius": 0.03}
    if case == "normalize":
        options |= {"normalize": "gradient", "objective": "dot"}
    else:
        data = [data[0] * (1 + 0.03 * torch.randn_like(x)) for x in data]

    def loss(y):
        return (y.double() - 1).square().mean()

    def term(weights):
        for x in (0.0, 1.0):
            found.append(gradient_of(weights, loss, inputs, x, **options)[0])
        return found[-2] - found[-1]

    found, inputs = [], data
    expected = term(model)
    if case == "one layer in 16 bits":
        model = nn.Sequential(*model[:4], model[4].bfloat16())
        model[3].register_forward_hook(lambda module, _, y: y.bfloat16())
    else:
        model, inputs = model.bfloat16(), [x.bfloat16() for x in data]
    assert F.cosine_similarity(term(model), expected, dim=0) > 0.7
