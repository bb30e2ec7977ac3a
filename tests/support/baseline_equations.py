"""Each baseline from its paper's equation, on flat vectors, and from nothing in the package.

All functions leave the parameters as they were and move buffers and random numbers as the method does. They return the
gradient as one vector and the losses.
"""

from __future__ import annotations

import contextlib

import torch

from support import oracle
from support.networks import state, trainable


def flat_params(model):
    return torch.cat([p.detach().reshape(-1) for p in trainable(model)])


@contextlib.contextmanager
def parameters_at(model, point):
    """The parameters at another point of parameter space."""
    theta = [p.detach().clone() for p in trainable(model)]
    try:
        write(model, point)
        yield
    finally:
        write(model, torch.cat([t.reshape(-1) for t in theta]))


@torch.no_grad()
def write(model, point):
    params = trainable(model)
    for p, values in zip(params, point.split([p.numel() for p in params]), strict=True):
        p.copy_(values.view_as(p))


def gradient_at(model, loss_fn, batch, point):
    params = trainable(model)
    with parameters_at(model, point):
        loss = loss_fn(batch)
        return oracle.flat(torch.autograd.grad(loss, params, allow_unused=True), params), loss.detach()


def hvp_at(model, loss_fn, batch, point, vector):
    params = trainable(model)
    with parameters_at(model, point):
        graph = torch.autograd.grad(loss_fn(batch), params, create_graph=True, allow_unused=True)
        return oracle.hvp(graph, params, vector)


def reptile(model, loss_fn, batches, inner_lr, mask=1.0):
    """(theta - theta_k) / (inner_lr k), the parameters that stay (mask 0) excepted."""
    theta = point = flat_params(model)
    losses = []
    for batch in batches:
        gradient, loss = gradient_at(model, loss_fn, batch, point)
        point = point - inner_lr * mask * gradient
        losses.append(loss)
    return (theta - point) / (inner_lr * len(batches)), torch.stack(losses)


def fomaml(model, loss_fn, batches, inner_lr, mask=1.0):
    """g_k(theta_{k-1})."""
    point, losses = flat_params(model), []
    for batch in batches:
        gradient, loss = gradient_at(model, loss_fn, batch, point)
        point = point - inner_lr * mask * gradient
        losses.append(loss)
    return gradient, torch.stack(losses)


def maml(model, loss_fn, batches, inner_lr, mask=1.0):
    """(I - inner_lr H_1(theta_0)) ... (I - inner_lr H_{k-1}(theta_{k-2})) g_k(theta_{k-1}), from right to left."""
    point, starts, losses = flat_params(model), [], []
    for batch in batches:
        starts.append((torch.get_rng_state(), state(model), point))
        vector, loss = gradient_at(model, loss_fn, batch, point)
        point = point - inner_lr * mask * vector
        losses.append(loss)
    end = torch.get_rng_state(), state(model)
    for batch, (random_state, before, point) in reversed(list(zip(batches, starts, strict=True))[:-1]):
        torch.set_rng_state(random_state)
        model.load_state_dict(before)
        vector = vector - inner_lr * hvp_at(model, loss_fn, batch, point, mask * vector)
    torch.set_rng_state(end[0])
    model.load_state_dict(end[1])
    return vector, torch.stack(losses)


def sam(model, loss_fn, batches, rho, per_micro_batch=False, mask=1.0):
    """Mean gradient at theta + rho g^, g the mean gradient or each micro-batch's own.

    Every second pass starts from the random numbers and buffers of its first.
    """
    theta = flat_params(model)
    starts, firsts, losses = [], [], []
    for batch in batches:
        starts.append((torch.get_rng_state(), state(model)))
        gradient, loss = gradient_at(model, loss_fn, batch, theta)
        firsts.append(gradient * mask)
        losses.append(loss)
    end = torch.get_rng_state(), state(model)
    seconds = []
    for (random_state, before), first, batch in zip(starts, firsts, batches, strict=True):
        up = first if per_micro_batch else torch.stack(firsts).mean(0)
        torch.set_rng_state(random_state)
        model.load_state_dict(before)
        seconds.append(gradient_at(model, loss_fn, batch, theta + rho * up / up.norm())[0])
    torch.set_rng_state(end[0])
    model.load_state_dict(end[1])
    return torch.stack(seconds).mean(0), torch.stack(losses)


def aligned(model, loss_fn, batches, weight, objective, normalize, mask=None):
    """Gbar - weight term, the term over all pairs by the oracle's double backward."""
    gbar, term, _, losses = oracle.term(
        model, loss_fn, batches, objective, normalize, oracle.all_pairs(len(batches)), mask
    )
    return gbar - weight * term, losses
