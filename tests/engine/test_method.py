"""One call in place of `loss.backward()`: what it returns, what it leaves in `.grad`, what is saved."""

from __future__ import annotations

import pickle
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.gradients import assert_close, grads
from support.measure import OBJECTIVES
from support.networks import Counting, make, state, trainable
from torch import nn

from gradalign import AlignmentStats, GradAlign


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", ["none", "direction", "gradient"])
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("k", [4, 6])
def test_sum_of_shares_equals_mean(objective, normalize, weight, k):
    model, loss_fn, batches = make(Counting, k=k)
    before = state(model)
    aligner = GradAlign(model, weight, objective=objective, normalize=normalize)
    mean = aligner.backward(loss_fn, batches)
    expected, stats = grads(model), aligner.stats.as_dict()
    model.zero_grad()
    model.load_state_dict(before)
    summed = aligner.backward(lambda batch: loss_fn(batch) / k, batches, reduction="sum")
    assert_close(grads(model), expected, rtol=1e-12)
    assert float(summed) == pytest.approx(float(mean), rel=1e-12)
    for name, value in aligner.stats.as_dict().items():
        assert value == (None if stats[name] is None else pytest.approx(stats[name], rel=1e-6))


def test_auxiliaries_come_back_in_order_from_the_base_passes():
    model, loss_fn, batches = make(Counting, k=8)
    aligner = GradAlign(model, 0.1)
    order = {id(batch): i for i, batch in enumerate(batches)}

    def with_aux(batch):
        return loss_fn(batch), (order[id(batch)], aligner.displaced)

    loss, aux = aligner.backward(with_aux, batches, has_aux=True)
    assert aux == [(i, False) for i in range(8)]
    assert float(loss) == pytest.approx(float(aligner.stats.loss))
    model.zero_grad()
    with aligner.accumulate(8, has_aux=True) as step:
        pairs = [step.backward(lambda batch=batch: with_aux(batch)) for batch in batches]
    assert [a for _, a in pairs] == aux


@pytest.mark.parametrize("container", [dict, UserDict, list])
def test_a_loss_fn_that_pops_from_its_batch_works(container):
    model = nn.Linear(3, 1)
    batches = [torch.randn(2, 3) for _ in range(4)]
    wrapped = [container([x]) if container is list else container({"x": x}) for x in batches]
    key = 0 if container is list else "x"
    GradAlign(model, 0.1).backward(lambda batch: model(batch.pop(key)).square().mean(), wrapped)
    popped = grads(model)
    model.zero_grad()
    GradAlign(model, 0.1).backward(lambda x: model(x).square().mean(), batches)
    assert_close(popped, grads(model), rtol=0)
    assert all(len(batch) == 1 for batch in wrapped)


def test_unreached_parameters_keep_none_and_late_ones_are_counted_as_zero_before():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(4))

        def forward(self, x, head):
            return getattr(self, head)(torch.tanh(self.trunk(x)))

    model = Heads().double()
    batches = [(torch.randn(4, 3, dtype=torch.float64), head) for head in ["first"] * 3 + ["second"]]

    def loss_fn(batch):
        x, head = batch
        return model(x, head).square().mean()

    for objective in OBJECTIVES:
        for normalize in ("none", "direction", "gradient"):
            for telemetry in (False, True):
                model.zero_grad()
                options = {"objective": objective, "normalize": normalize, "telemetry": telemetry}
                GradAlign(model, 0.1, **options).backward(loss_fn, batches)
                assert model.third.weight.grad is None
                assert model.second.weight.grad is not None
                assert model.first.weight.grad is not None


def test_zeroed_grads_are_added_to_in_place():
    for objective in OBJECTIVES:
        for telemetry in (False, True):
            model, loss_fn, batches = make(Counting, k=4)
            twin, twin_loss, _ = make(Counting, k=4)
            optimizer = torch.optim.SGD(model.parameters())
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.zero_grad(set_to_none=False)
            given = [p.grad for p in trainable(model)]
            options = {"objective": objective, "telemetry": telemetry}
            GradAlign(model, 0.1, zeroed_grads=True, **options).backward(loss_fn, batches)
            GradAlign(twin, 0.1, **options).backward(twin_loss, batches)
            assert all(p.grad is g for p, g in zip(trainable(model), given, strict=True))
            assert_close(grads(model), grads(twin), rtol=1e-12)


def test_several_models_and_parameters_counted_once():
    first, second = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
    batches = list(torch.randn(4, 5, 3, dtype=torch.float64))

    def loss_fn(x):
        return second(torch.tanh(first(x))).square().mean()

    GradAlign([first, second, first], 0.3).backward(loss_fn, batches)
    several = [p.grad.clone() for p in (*first.parameters(), *second.parameters())]
    both = nn.ModuleList([first, second])
    both.zero_grad()
    GradAlign(both, 0.3, params=[*both.parameters(), *both.parameters()]).backward(loss_fn, batches)
    assert_close([p.grad for p in both.parameters()], several, rtol=1e-12)


def test_state_dict_carries_the_step():
    model, loss_fn, batches = make(Counting, k=4)
    seen = []

    def weight(step):
        seen.append(step)
        return 0.1

    aligner = GradAlign(model, weight)
    for _ in range(3):
        aligner.backward(loss_fn, batches)
        model.zero_grad()
    other = GradAlign(model, weight)
    other.load_state_dict(aligner.state_dict())
    other.backward(loss_fn, batches)
    assert seen == [0, 1, 2, 3]
    assert isinstance(other.stats, AlignmentStats)
    with pytest.raises(ValueError, match="expected the state of a GradAlign"):
        other.load_state_dict({"wrong": 1})


def test_a_scheduled_weight_that_is_not_finite_is_refused_before_the_first_pass():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(ValueError, match=r"weight\(step\): expected a finite number; got nan"):
        GradAlign(model, lambda step: float("nan")).backward(loss_fn, batches)
    assert grads(model) == [None, None]


def test_an_aligner_can_be_copied_and_pickled():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, 0.1, estimator="prefix")
    aligner.backward(loss_fn, batches)
    other = pickle.loads(pickle.dumps(aligner))
    model.zero_grad()
    aligner.backward(loss_fn, batches)
    assert (other.num_steps, aligner.num_steps) == (1, 2)


def test_before_replay_moves_the_weight_and_counts_the_step():
    model, loss_fn, batches = make(Counting)
    aligner = GradAlign(model, lambda step: 0.1 * (step + 1), every=2)
    with pytest.raises(RuntimeError, match="before_replay: expected a captured step"):
        aligner.before_replay()
    aligner.backward(loss_fn, batches)
    cell = aligner._weight_cell
    assert [(aligner.before_replay(), round(float(cell), 6)) for _ in range(3)] == [
        (False, 0.0),
        (True, 0.6),
        (False, 0.0),
    ]
    assert aligner.num_steps == 4
    model.zero_grad()
    aligner.backward(loss_fn, batches)
    assert aligner._weight_cell is cell
    assert float(cell) == pytest.approx(1.0)


def test_zeroed_grads_that_are_not_zeros_are_refused_in_the_first_step():
    model = torch.nn.Linear(3, 2)
    batches = [torch.randn(4, 3) for _ in range(4)]
    aligner = GradAlign(model, 0.03, zeroed_grads=True)
    model.weight.square().sum().backward()
    with pytest.raises(ValueError, match="zeroed_grads: expected every .grad to be None or zeros on entry"):
        aligner.backward(lambda x: model(x).square().mean(), batches)
    model.zero_grad(set_to_none=False)
    aligner.backward(lambda x: model(x).square().mean(), batches)
    assert aligner.num_steps == 1


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": x}, lambda x: (x, 3)])
def test_an_iterator_that_fills_one_tensor_again_is_refused(wrap):
    model, buffer = torch.nn.Linear(3, 2), torch.empty(4, 3)
    batches = [torch.randn(4, 3) for _ in range(4)]

    def loss_fn(batch):
        return model(
            batch if isinstance(batch, torch.Tensor) else next(iter(getattr(batch, "values", lambda: batch)()))
        ).mean()

    with pytest.raises(ValueError, match=r"got the same in 1 and 2.*yield clones or copies, or pass a list"):
        GradAlign(model, 0.03).backward(loss_fn, (wrap(buffer.copy_(x)) for x in batches))
    for allowed in ((wrap(buffer.copy_(x).clone()) for x in batches), [wrap(buffer)] * 4):
        GradAlign(model, 0.03).backward(loss_fn, allowed)
        model.zero_grad()


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"x": [x]}, lambda x: SimpleNamespace(x=x)])
def test_an_iterator_that_fills_one_array_again_is_refused(wrap):
    model, buffer = torch.nn.Linear(3, 2).double(), np.empty((4, 3))
    batches = list(np.random.default_rng(0).normal(size=(4, 4, 3)))

    def filled(x):
        buffer[:] = x
        return buffer

    def loss_fn(batch):
        while not isinstance(batch, np.ndarray):
            batch = (
                batch[0] if isinstance(batch, (list, tuple)) else next(iter(getattr(batch, "__dict__", batch).values()))
            )
        return model(torch.from_numpy(batch)).square().mean()

    with pytest.raises(ValueError, match=r"got the same in 1 and 2.*yield clones or copies, or pass a list"):
        GradAlign(model, 0.03).backward(loss_fn, (wrap(filled(x)) for x in batches))
    mask = np.ones(3)  # one array that all have in common is no fault
    numbered = ((buffer, i) for i in range(4)), ({"x": buffer, "name": name} for name in "abcd")
    for allowed in (
        (wrap(filled(x).copy()) for x in batches),
        [wrap(buffer)] * 4,
        ([x, mask] for x in batches),
        *numbered,
    ):
        GradAlign(model, 0.03).backward(loss_fn, allowed)
        model.zero_grad()


def test_an_iterator_may_repeat_what_micro_batches_have_in_common():
    model, mask = torch.nn.Linear(3, 2), torch.ones(4, 1)
    shared = ((torch.randn(4, 3), mask) for _ in range(4))
    aligner = GradAlign(model, 0.03)
    aligner.backward(lambda b: (model(b[0]) * b[1]).square().mean(), shared)
    assert aligner.num_steps == 1
