"""The term that a method leaves in .grad, and what it should be."""

from __future__ import annotations

import torch

import gradalign
from support import oracle
from support.networks import state, trainable

OBJECTIVES = ("dot", "variance", "cosine", "norm")
NORMALIZATIONS = ("none", "direction", "gradient")


def relative(a, b):
    return float((a - b).norm() / b.norm())


def measured_term(model, loss_fn, batches, weight=0.5, **options):
    """The term that ends in .grad, and the aligner."""
    params, before = trainable(model), state(model)
    torch.manual_seed(1)
    gbar, _, _, _ = oracle.term(model, loss_fn, batches, "dot", "none", [])
    model.load_state_dict(before)
    torch.manual_seed(1)
    aligner = gradalign.GradAlign(model, weight=weight, **options)
    aligner.backward(loss_fn, batches)
    model.load_state_dict(before)
    return (gbar - oracle.flat([p.grad for p in params], params)) / weight, aligner


def exact_term(model, loss_fn, batches, objective, normalize, pairs, mask=None):
    before = state(model)
    torch.manual_seed(1)
    _, term, g, losses = oracle.term(model, loss_fn, batches, objective, normalize, pairs, mask)
    model.load_state_dict(before)
    return term, g, losses


def by_hand(model, loss_fn, batches, objective, pairs, radius):
    """The term with direction, from forward differences of deep copies that share nothing but their starting state."""
    params = trainable(model)
    torch.manual_seed(1)
    starts, g = [], []
    for batch in batches:
        starts.append((torch.get_rng_state(), state(model)))
        g.append(oracle.flat(torch.autograd.grad(loss_fn(batch), params, allow_unused=True), params))
    g = torch.stack(g)
    total = torch.zeros_like(g[0])
    for i, others, omega in pairs:
        random_state, before = starts[i]
        model.load_state_dict(before)
        torch.set_rng_state(random_state)
        v = oracle.displacement(objective, i, others, g)
        with torch.no_grad():
            for p, d in zip(params, (v / v.norm()).split([p.numel() for p in params]), strict=True):
                p += radius * d.view_as(p)
        there = oracle.flat(torch.autograd.grad(loss_fn(batches[i]), params, allow_unused=True), params)
        total += omega * (there - g[i]) / radius
    model.load_state_dict(starts[0][1])
    return total
