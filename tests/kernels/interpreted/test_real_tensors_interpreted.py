"""The kernels read addresses: a tensor whose memory is not its value is refused by every op; optimizers take its values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradalign import GradAlign
from gradalign.backends import dispatch
from gradalign.optim import LAMB, SGD, AdamW

REFUSED = "expected tensors whose memory holds their values"
MAKE = {"negative": lambda: torch._neg_view(torch.ones(3)), "zeros": lambda: torch._efficientzerotensor(3)}
SCALE = torch.tensor(0.5)
CALLS = {
    "norm_dot": lambda m, t: m.norm_dot([torch.ones(3)], [t]),
    "perturb_": lambda m, t: m.perturb_([torch.ones(3)], [torch.ones(3)], [t], SCALE),
    "perturb_, ys": lambda m, t: m.perturb_(
        [torch.ones(3)], [torch.ones(3)], [torch.ones(3)], SCALE, ys=[t], scale_y=SCALE
    ),
    "restore_": lambda m, t: m.restore_([torch.ones(3)], [t]),
    "swap_": lambda m, t: m.swap_([t], [torch.ones(3)]),
    "accumulate_": lambda m, t: m.accumulate_([t], [torch.ones(3)], SCALE),
    "combine_": lambda m, t: m.combine_([torch.ones(3)], [torch.ones(3)], [t], SCALE, SCALE),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", MAKE)
def test_ops(kind, name):
    with pytest.raises(ValueError, match=REFUSED):
        CALLS[name](dispatch.load("triton"), MAKE[kind]())


@pytest.mark.parametrize("cls", [AdamW, SGD, LAMB])
def test_steps_take_the_values(cls):
    found = []
    for grad in (MAKE["negative"](), -torch.ones(3)):
        p = torch.ones(3, requires_grad=True)
        p.grad = grad
        cls([p], backend="triton").step()
        found.append(p.detach())
    assert torch.equal(*found)
    assert bool((found[0] > 1).all())


class Turned(torch.autograd.Function):
    """The identity with a negative view for a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch._neg_view(-gradient)


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_a_gradient_that_is_a_negative_view(backend):
    if dispatch.load(backend).why_unavailable() is not None:
        pytest.skip(dispatch.load(backend).why_unavailable())

    def found(turned):
        torch.manual_seed(0)
        model = nn.Linear(3, 1, bias=False)

        def loss_fn(x):
            weight = Turned.apply(model.weight) if turned else model.weight
            return nn.functional.linear(x, weight).square().mean()

        GradAlign(model, 0.1, backend=backend).backward(loss_fn, list(torch.randn(4, 5, 3)))
        return model.weight.grad

    if backend == "triton":
        with pytest.raises(ValueError, match=REFUSED):
            found(True)
    else:
        torch.testing.assert_close(found(True), found(False))
