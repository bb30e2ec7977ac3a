"""Cases that drive the tests of the optimizers, and distances between what two of them did."""

from __future__ import annotations

import torch

from gradalign import optim

# What torch's class of the same name knows; the settings cover every branch of the update.
ADAMW = {
    "default": {},
    "lr": {"lr": 1e-2},
    "tensor-lr": {"lr": torch.tensor(1e-3)},
    "no-decay": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.1},
    "betas": {"betas": (0.8, 0.95)},
    "beta1-zero": {"betas": (0.0, 0.9)},
    "beta1-small": {"betas": (0.3, 0.9)},  # torch's lerp takes its other branch
    "eps": {"eps": 1e-3},
    "amsgrad": {"amsgrad": True, "weight_decay": 0.1},
    "maximize": {"maximize": True, "weight_decay": 0.1},
}
SGD = {
    "default": {},
    "lr": {"lr": 1e-2},
    "tensor-lr": {"lr": torch.tensor(1e-3)},
    "decay": {"weight_decay": 0.5},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "decay-momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"maximize": True, "weight_decay": 0.1, "momentum": 0.9},
}


def paired():
    """(id, ours, torch's, settings, further settings of ours) for every case."""
    for name, kwargs in ADAMW.items():
        yield f"AdamW-{name}", optim.AdamW, torch.optim.AdamW, kwargs, {}
    for name in ("decay", "amsgrad", "no-decay"):
        yield f"Adam-{name}", optim.AdamW, torch.optim.Adam, ADAMW[name], {"decoupled_weight_decay": False}
    for name, kwargs in SGD.items():
        yield f"SGD-{name}", optim.SGD, torch.optim.SGD, kwargs, {}


def info_tables():
    """The same from torch's own test tables; empty where they cannot be imported."""
    try:
        from torch.testing._internal.common_optimizers import optim_db
    except ImportError:
        return
    for info in optim_db:
        ours = {torch.optim.AdamW: optim.AdamW, torch.optim.SGD: optim.SGD}.get(info.optim_cls)
        for case in info.optim_inputs_func(device="cpu") if ours else ():
            yield f"{ours.__name__}-{case.desc}", ours, info.optim_cls, case.kwargs, {}


def parameters(dtype=torch.float32, requires_grad=True):
    """Shapes that are awkward: empty, one element, odd, transposed."""
    shapes = [(0,), (), (3, 5), (4099,)]
    tensors = [torch.randn(shape).to(dtype) for shape in shapes] + [torch.randn(4, 6).to(dtype).t()]
    return [t.detach().requires_grad_(requires_grad) for t in tensors]


def clones(params, dtype=None):
    return [p.detach().clone().to(dtype or p.dtype).requires_grad_() for p in params]


def gradient_like(p, generator):
    """Magnitudes over eight decades, and some zeros."""
    size = 10 ** (torch.rand(p.shape, generator=generator, dtype=torch.float64) * 8 - 6)
    g = torch.randn(p.shape, generator=generator, dtype=torch.float64) * size
    return g * (torch.rand(p.shape, generator=generator) > 0.05)


def set_gradients(generator, *models):
    """The same gradients, rounded to each model's dtype, for all of them."""
    for same in zip(*models, strict=True):
        g = gradient_like(same[0], generator).to(same[0].dtype)  # rounded once: what the widest copy sees, too
        for p in same:
            p.grad = torch.empty_like(p, requires_grad=False).copy_(
                g
            )  # with p's strides: torch's fused form relies on them


def ulp(x):
    """The distance to the next larger magnitude."""
    return torch.ldexp(torch.full_like(x, torch.finfo(x.dtype).eps), torch.frexp(x).exponent - 1)


def rms(params, exact):
    """Root mean square of the difference, over all of it."""
    squares = [(p.detach().double() - q.detach().double()).square().sum() for p, q in zip(params, exact, strict=True)]
    return float((sum(squares) / sum(p.numel() for p in params)).sqrt())
