"""Clearing gradients that share memory: every parameter sees its gradient before anything is zeroed."""

from __future__ import annotations

import pytest
import torch

from gradalign.optim import LAMB, SGD, AdamW
from gradalign.optim.gradients import own_memory

OURS = {"AdamW": (AdamW, {}), "SGD": (SGD, {"momentum": 0.9}), "LAMB": (LAMB, {})}
each_kind = pytest.mark.parametrize("kind", OURS)
LONG = 5_000  # elements: more than one block of a kernel


def one_sum(w, b):
    """One gradient for both."""
    return torch.autograd.grad((w + b).square().sum(), [w, b])


def expanded(w, b):
    """One element for all of them."""
    return torch.autograd.grad(w.sum() - 2 * b.sum(), [w, b])


def overlapping(w, b):
    """Neighbours in one buffer, shifted by one element."""
    buffer = torch.arange(1.0, LONG + 2)
    return buffer[:-1], buffer[1:]


CASES = {"one sum": one_sum, "expanded": expanded, "overlapping": overlapping}


def trained(kind, gradients, backend, clear, groups=1):
    cls, kwargs = OURS[kind]
    torch.manual_seed(0)
    w, b = (torch.randn(LONG, requires_grad=True) for _ in range(2))
    params = [w, b] if groups == 1 else [{"params": [w]}, {"params": [b], "lr": 0.01}]
    optimizer = cls(params, backend=backend, clear=clear, **kwargs)
    for _ in range(2):
        w.grad, b.grad = gradients(w, b)
        optimizer.step()
    return w, b


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("case", CASES)
@each_kind
def test_shared_gradients_are_zeroed_after_the_step(kind, case, groups, backend):
    plain = trained(kind, CASES[case], backend, None, groups)
    cleared = trained(kind, CASES[case], backend, "zero", groups)
    for p, q in zip(plain, cleared, strict=True):
        assert torch.equal(p, q)
        assert bool((p.grad != 0).any())
        assert bool((q.grad == 0).all())


@each_kind
def test_shared_gradients_are_zeroed_where_the_step_is_skipped(kind, backend):
    cls, kwargs = OURS[kind]
    w, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    w.grad = b.grad = torch.full((3,), torch.inf)
    cls([w, b], backend=backend, clear="zero", **kwargs).step()
    assert w.grad is b.grad
    assert bool((w.grad == 0).all())
    assert torch.equal(w.detach(), torch.ones(3))


def test_windows_of_one_buffer_are_zeroed(backend):
    p = torch.ones(3, 2, requires_grad=True)
    p.grad = torch.arange(1.0, 5.0).unfold(0, 2, 1)  # rows (1, 2), (2, 3), (3, 4)
    SGD([p], lr=1.0, backend=backend, clear="zero").step()
    assert p.tolist() == [[0, -1], [-1, -2], [-2, -3]]
    assert bool((p.grad == 0).all())


ALIASES = {
    "its parameter": (lambda p, state: p.detach(), "params"),
    "a part of it": (lambda p, state: p.detach()[:1].expand(4), "params"),
    "its state": (lambda p, state: state["exp_avg"], "exp_avg"),
    "its other state": (lambda p, state: state["exp_avg_sq"], "exp_avg_sq"),
}


@pytest.mark.parametrize("case", ALIASES)
def test_gradients_in_the_memory_of_what_is_written_are_refused(case, backend):
    make, name = ALIASES[case]
    p = torch.ones(4, requires_grad=True)
    optimizer = AdamW([p], backend=backend, clear="zero")
    for _ in range(2):
        p.grad = torch.ones(4)
        optimizer.step()
    before = p.detach().clone()
    p.grad = make(p, optimizer.state[p])
    with pytest.raises(ValueError, match=f"shares memory with {name}, which would be zeroed too"):
        optimizer.step()
    assert torch.equal(p.detach(), before)
    assert int(optimizer.state[p]["step"]) == 2


def test_parameters_and_gradients_may_be_columns_of_one_matrix(backend):
    matrix = torch.ones(3, 2)
    p = matrix[:, 0].requires_grad_()
    p.grad = matrix[:, 1].detach()
    SGD([p], lr=0.5, backend=backend, clear="zero").step()
    assert matrix.tolist() == [[0.5, 0.0]] * 3


BUFFER = torch.zeros(24)
OWN = {
    "apart": [torch.zeros(3), torch.zeros(2, 2), torch.zeros(0)],
    "neighbours in one buffer": [BUFFER[12:], BUFFER[:12].view(3, 4)],
    "transposed neighbours": [BUFFER[12:], BUFFER[:12].view(3, 4).t()],
    "channels last": [torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)],
    "rows with a gap": [BUFFER.view(4, 6)[:, :3]],
    "one element, expanded to one": [torch.zeros(1).expand(1, 1)],
}
SHARED = {
    "twice": [BUFFER, BUFFER],
    "overlapping": [BUFFER[:13], BUFFER[12:]],
    "inside another": [BUFFER, torch.zeros(3), BUFFER[3:4]],
    "expanded": [torch.zeros(()).expand(4)],
    "windows": [BUFFER.unfold(0, 3, 1)],
    "other dtype, same memory": [BUFFER[:2], BUFFER.view(torch.float64)[:1]],
}


@pytest.mark.parametrize("case", OWN)
def test_tensors_that_own_their_memory(case):
    assert own_memory(OWN[case])


@pytest.mark.parametrize("case", SHARED)
def test_tensors_that_share_memory(case):
    assert not own_memory(SHARED[case])
