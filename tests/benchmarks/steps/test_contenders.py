"""Every contender does whole steps on the same workload."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from benchmarks.errors import CommandError
from benchmarks.steps import contenders, peers
from benchmarks.steps.contenders import CONTENDERS
from benchmarks.steps.task import LR, GradientFiller, Task
from benchmarks.steps.workloads import LoadedWorkload

K = 8
LOSSES = {
    "plain": 8,
    "split m=k/8": 9,
    "split m=k/4": 10,
    "split m=k/2": 12,
    "split m=k/4, variance": 10,
    "prefix": 15,
    "leave_one_out": 16,
    "leave_one_out, variance": 16,
    "momentum": 8,
    "split m=k/4 @reference": 10,
    "difference, torch": 10,
    "difference, foreach": 10,
    "double backward": 8,
    "naive double backward": 8,
    "full Hessian": 16,
    "pytorch_optimizer SAM": 16,
    "SAM, davda54's two steps": 16,
    "gradalign SAM": 16,
    "pytorch_optimizer GSAM": 16,
    "Reptile": 8,
    "FOMAML": 8,
}


@pytest.fixture
def loaded():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    batches = list(torch.randn(K, 3, 4))
    return LoadedWorkload(model, lambda net, x: net(x).square().mean(), [batches], "random")


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_moves_every_parameter_by_adamws_length(loaded, name):
    task = Task(loaded)
    method = CONTENDERS[name].make(task)
    method.step(loaded.steps[0])  # the first step with the term evaluates one loss more
    before = [p.detach().clone() for p in loaded.model.parameters()]
    first = task.num_losses
    method.step(loaded.steps[0])
    assert task.num_losses - first == LOSSES[name]
    for p, value in zip(loaded.model.parameters(), before, strict=True):
        assert 0 < float((p.detach() - value).abs().max()) < 20 * LR
        assert p.grad is None


def test_looksam_evaluates_twice_in_one_step_of_five(loaded):
    task = Task(loaded)
    method = CONTENDERS["pytorch_optimizer LookSAM"].make(task)
    counts = []
    for _ in range(6):
        before = task.num_losses
        method.step(loaded.steps[0])
        counts.append(task.num_losses - before)
    assert counts == [16, 8, 8, 8, 8, 16]
    assert CONTENDERS["pytorch_optimizer LookSAM"].period == 5


def test_double_backward_is_the_estimator_exact(loaded):
    method = CONTENDERS["double backward"].make(Task(loaded))
    method.step(loaded.steps[0])
    assert method.passes == 2 * K


def test_both_two_step_sams_agree(loaded):
    states = []
    start = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for name in ("pytorch_optimizer SAM", "SAM, davda54's two steps"):
        loaded.model.load_state_dict(start)
        method = CONTENDERS[name].make(Task(loaded))
        method.step(loaded.steps[0])
        states.append(torch.cat([p.detach().flatten() for p in loaded.model.parameters()]))
    torch.testing.assert_close(*states, rtol=0, atol=1e-8)


def test_gsam_climbs_by_rho(loaded):
    assert peers.WithGap(Task(loaded))._optimizer.rho_t == pytest.approx(peers.RHO)


def test_every_estimator_is_there_on_every_backend():
    for name in contenders.ESTIMATORS:
        for backend in ("native", "triton", "reference"):
            assert CONTENDERS[f"{name} @{backend}"].family == "gradalign"


def test_the_optimizers_state_is_there_before_the_first_step(loaded):
    optimizer = Task(loaded).adamw()
    assert all(len(optimizer.state[p]) == 3 and p.grad is None for p in loaded.model.parameters())


def test_a_filling_method_says_its_own_passes(loaded):
    method = CONTENDERS["prefix"].make(Task(loaded))
    assert isinstance(method, GradientFiller)
    assert method.passes is None
    method.step(loaded.steps[0])
    assert method.passes == 15


def test_an_unknown_method_is_named():
    with pytest.raises(CommandError, match="method: expected one of plain, .*; got 'nothing'"):
        contenders.contender("nothing")


def test_without_the_peer_the_message_says_what_installs_it(loaded, monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(CommandError, match=r"expected pytorch_optimizer; got .*; pip install pytorch_optimizer"):
        peers.TwoSteps(Task(loaded), "SAM")
