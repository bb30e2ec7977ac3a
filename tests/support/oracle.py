"""The exact term by double backward, written from DESIGN's tables and from nothing in the package."""

from __future__ import annotations

import torch

from support.networks import trainable


def flat(tensors, like):
    return torch.cat(
        [(torch.zeros_like(p) if t is None else t).reshape(-1) for t, p in zip(tensors, like, strict=True)]
    )


def gradients(model, loss_fn, batches):
    """Graphs and values of every micro-batch's gradient, in the order of the base passes."""
    params = trainable(model)
    graphs, values, losses = [], [], []
    for batch in batches:
        loss = loss_fn(batch)
        grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
        graphs.append(grads)
        values.append(flat([None if g is None else g.detach() for g in grads], params))
        losses.append(loss.detach())
    return graphs, torch.stack(values), torch.stack(losses)


def hvp(grads, params, v):
    """H v of one micro-batch, flat."""
    pieces = v.split([p.numel() for p in params])
    inner = sum((g * d.view_as(g)).sum() for g, d in zip(grads, pieces, strict=True) if g is not None)
    return flat(torch.autograd.grad(inner, params, retain_graph=True, allow_unused=True), params)


def displacement(objective, i, others, g):
    """v_i of DESIGN's table of objectives, for micro-batch i compared with the given others."""
    a = g[others].mean(0)
    if objective == "dot":
        return a
    if objective == "norm":
        return -a
    if objective == "variance":
        return a - g[i]
    u = (g[others] / g[others].norm(dim=1, keepdim=True)).mean(0)
    unit = g[i] / g[i].norm()
    return (u - (u @ unit) * unit) / g[i].norm()


def term(model, loss_fn, batches, objective, normalize, pairs, mask=None):
    """(gbar, term, g, losses) for pairs of (micro-batch, those it is compared with, omega).

    `mask` is 1 on the parameters A is measured on, flat.
    """
    params = trainable(model)
    graphs, g, losses = gradients(model, loss_fn, batches)
    seen = g if mask is None else g * mask
    total = torch.zeros_like(g[0])
    for i, others, omega in pairs:
        v = displacement(objective, i, others, seen)
        w = v / v.norm() if normalize == "direction" else v
        total += (1 if normalize == "direction" else 2) * omega * hvp(graphs[i], params, w)
    gbar = g.mean(0)
    if normalize == "gradient":
        total *= gbar.norm() / total.norm()
    return gbar, total, g, losses


def split_pairs(k, m):
    """Probes are the last m, compared with the anchors before them."""
    return [(i, list(range(k - m)), 1 / m) for i in range(k - m, k)]


def all_pairs(k):
    """Everybody with everybody else: the exact gradient of A."""
    return [(i, [j for j in range(k) if j != i], 1 / k) for i in range(k)]
