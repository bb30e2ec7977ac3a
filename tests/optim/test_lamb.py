"""LAMB against a float64 reference written from the paper."""

from __future__ import annotations

import pytest
import torch
from support.optim_cases import clones, parameters, set_gradients

from gradalign.optim import LAMB

CASES = {
    "default": {},
    "decay": {"weight_decay": 0.1},
    "no-decay": {"weight_decay": 0.0},
    "betas": {"betas": (0.8, 0.95), "eps": 1e-3},
    "no-trust": {"trust": False, "weight_decay": 0.1},
    "maximize": {"maximize": True, "lr": 1e-2},
}


def paper(theta, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-2, trust=True, maximize=False):
    """You et al. 2020, algorithm 2, with phi(z) = z, over a list of gradients, in float64."""
    theta = theta.detach().double().clone()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    for t, g in enumerate(grads, start=1):
        g = g.double() * (-1 if maximize else 1)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        r = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        u = r + weight_decay * theta
        norms = theta.norm(), u.norm()
        ratio = norms[0] / norms[1] if trust and norms[0] > 0 and norms[1] > 0 else 1.0
        theta = theta - lr * ratio * u
    return theta


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_follow_the_paper(case, backend):
    generator = torch.Generator().manual_seed(0)
    params = parameters()
    start = clones(params)
    optimizer = LAMB(params, backend=backend, **CASES[case])
    history = []
    for _ in range(20):
        set_gradients(generator, params)
        history.append([p.grad.clone() for p in params])
        optimizer.step()
    for i, (p, p0) in enumerate(zip(params, start, strict=True)):
        exact = paper(p0, [grads[i] for grads in history], **CASES[case])
        assert torch.allclose(p.detach().double(), exact, rtol=1e-5, atol=1e-6)
        assert p.numel() == 0 or not torch.equal(p, p0)


def test_the_ratio_is_one_where_a_norm_is_zero(backend):
    zero, still = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
    zero.grad, still.grad = torch.ones(3), torch.zeros(3)
    optimizer = LAMB([zero, still], lr=0.5, weight_decay=0.0, backend=backend)
    optimizer.step()
    assert torch.allclose(zero.detach(), torch.full((3,), -0.5))  # theta = 0: the step has the length of Adam's
    assert torch.equal(still.detach(), torch.ones(3))  # u = 0


def test_groups_choose_their_own_trust(backend):
    params = [torch.full((4,), 8.0, requires_grad=True) for _ in range(2)]
    for p in params:
        p.grad = torch.ones(4)
    groups = [{"params": params[:1]}, {"params": params[1:], "trust": False}]
    LAMB(groups, lr=0.5, weight_decay=0.0, backend=backend).step()
    assert torch.allclose(params[0].detach(), torch.full((4,), 4.0))  # lr ||theta|| / ||u|| = 0.5 * 8
    assert torch.allclose(params[1].detach(), torch.full((4,), 7.5))


def test_a_tensor_larger_than_a_chunk_has_one_ratio(backend):
    p = torch.linspace(-1, 1, 300_001).requires_grad_()
    p.grad = torch.linspace(1, 3, 300_001)
    start = p.detach().clone()
    LAMB([p], lr=0.1, backend=backend).step()
    exact = paper(start, [p.grad], lr=0.1)
    assert torch.allclose(p.detach().double(), exact, rtol=1e-5, atol=1e-7)
