"""`.grad` of a model, kept and compared."""

from __future__ import annotations

import torch


def grads(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_close(found, expected, rtol):
    largest = max(float(b.abs().max()) for b in expected if b is not None)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * largest)
