"""The optimizer steps against the reference steps, in float64 and in the same dtypes: tests for any backend.

A test file imports those it runs and has a fixture `backend`.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from gradalign.backends import reference, signatures
from support.kernel_cases import DTYPES, copies, tensors

# A parameter is rounded once at the store; its update is off by a few roundings of float32 (LAMB: and of its norms' sums).
PARAM = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
STATE = {torch.float64: 1e-13, torch.float32: 2e-6}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_op = pytest.mark.parametrize("op", ["adamw", "sgd", "lamb"])


class Inputs:
    """Parameters in `dtype`, state in `dtype` or float32, the second tensor at its second step."""

    def __init__(self, dtype, masters, layout="contiguous", state_dtype=None):
        wide = state_dtype or (torch.float64 if dtype == torch.float64 else torch.float32)
        values = tensors(torch.float32, layout, 1)
        self.params = [t.to(dtype) for t in values]
        self.masters = [t.to(wide) for t in values] if masters else []
        self.grads = tensors(dtype, "contiguous", 2)
        self.m = [t / 8 for t in tensors(wide, layout, 3)]
        self.v = [t.abs() for t in tensors(wide, layout, 4)]
        self.largest = [t.abs() for t in tensors(wide, layout, 5)]
        self.steps = [torch.tensor(float(i % 2)) for i in range(len(values))]

    def lists(self):
        return {name: getattr(self, name) for name in ("params", "masters", "grads", "m", "v", "largest", "steps")}

    def to(self, dtype):
        for name, ts in self.lists().items():
            setattr(self, name, [t.to(dtype) for t in ts])
        return self


def run(backend, op, inputs, flag=False, scale=0.5, decay=0.1, **options):
    scalars = (torch.tensor(scale), torch.tensor(0.01, dtype=torch.float64), torch.tensor(decay, dtype=torch.float64))
    options = {"maximize": flag, "zero_grads": flag, **options}
    i = inputs
    adam = {"beta1": 0.9, "beta2": 0.99}
    if op == "adamw":
        lists = (i.params, i.grads, i.m, i.v, i.largest if flag else [], i.masters, i.steps)
        options |= {**adam, "eps": 1e-8, "decoupled": not flag}
    elif op == "sgd":
        lists = (i.params, i.grads, i.m, i.masters, i.steps)
        options |= {"momentum": 0.9, "dampening": 0.0 if flag else 0.1, "nesterov": flag}
    else:
        lists = (i.params, i.grads, i.m, i.v, i.masters, i.steps)
        options |= {**adam, "eps": 1e-6, "trust": not flag}
    signatures.call(backend, f"{op}_step_", *lists, *scalars, **options)


def assert_near(actual, exact, tolerance):
    for a, e in zip(actual, exact, strict=True):
        torch.testing.assert_close(a.double(), e.double(), rtol=tolerance, atol=tolerance)


@each_dtype
@each_op
@pytest.mark.parametrize(("masters", "flag"), [*itertools.product([False, True], repeat=2)])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_a_step_is_that_of_the_reference_in_float64(backend, op, dtype, masters, flag, layout):
    actual, exact = Inputs(dtype, masters, layout), Inputs(dtype, masters, layout).to(torch.float64)
    run(backend, op, actual, flag)
    run(reference, op, exact, flag)
    wide = actual.m[0].dtype
    assert_near(actual.params, exact.params, PARAM[dtype] + STATE[wide])
    for name in ("m", "v", "largest", "masters"):
        assert_near(getattr(actual, name), getattr(exact, name), STATE[wide])
    assert [float(s) for s in actual.steps] == [i % 2 + 1 for i in range(len(actual.steps))]
    assert all(bool(g.eq(0).all()) == flag for g in actual.grads if g.numel())


@each_op
def test_16_bit_state_is_computed_in_float32_and_rounded_once(backend, op):
    actual, exact = (Inputs(torch.bfloat16, False, state_dtype=torch.bfloat16) for _ in range(2))
    exact.to(torch.float64)
    run(backend, op, actual)
    run(reference, op, exact)
    for name in ("params", "m", "v"):
        assert_near(
            getattr(actual, name), getattr(exact, name), 2**-7
        )  # LAMB's direction is that of the stored moments


@each_op
@pytest.mark.parametrize("skip", [1.0, float("inf"), float("nan")])
def test_a_skipped_step_only_clears_gradients(backend, op, skip):
    inputs = Inputs(torch.bfloat16, True)
    inputs.grads[1].fill_(float("inf"))
    before = {name: copies(ts) for name, ts in inputs.lists().items()}
    run(backend, op, inputs, skip=torch.tensor(skip), zero_grads=False)
    for name, ts in inputs.lists().items():
        assert all(map(torch.equal, ts, before[name])), name
    run(backend, op, inputs, skip=torch.tensor(skip), zero_grads=True)
    assert all(g.eq(0).all() for g in inputs.grads)
    assert all(map(torch.equal, inputs.params, before["params"]))
    assert all(map(torch.equal, inputs.steps, before["steps"]))


@each_op
def test_a_step_that_is_not_skipped_is_a_step(backend, op):
    inputs, plain = Inputs(torch.float32, False), Inputs(torch.float32, False)
    run(backend, op, inputs, skip=torch.tensor(0.0))
    run(backend, op, plain)
    assert all(map(torch.equal, inputs.params, plain.params))
    assert not torch.equal(inputs.params[-1], Inputs(torch.float32, False).params[-1])


@each_op
def test_no_decay_leaves_an_infinite_parameter_alone(backend, op):
    """As torch does: a decay of 0 times infinity would be NaN."""
    inputs, expected = Inputs(torch.float32, False), Inputs(torch.float32, False)
    for i in (inputs, expected):
        i.params[-1].view(-1)[1] = -torch.inf
    run(backend, op, inputs, flag=True, decay=0.0)
    run(reference, op, expected.to(torch.float64), flag=True, decay=0.0)
    assert inputs.params[-1].view(-1)[1] == -torch.inf
    assert_near(inputs.params, expected.params, PARAM[torch.float32])


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("masters", [False, True])
def test_stochastic_rounding_draws_the_bits_of_the_reference(backend, masters, layout):
    # SGD, whose float32 arithmetic is the same operation by operation: any difference would be the stream's.
    actual, expected = Inputs(torch.bfloat16, masters, layout), Inputs(torch.bfloat16, masters, layout)
    seed = torch.tensor(-(2**40) + 12345)
    run(backend, "sgd", actual, seed=seed)
    run(reference, "sgd", expected, seed=seed)
    assert all(map(torch.equal, actual.params, expected.params))
    nearest = Inputs(torch.bfloat16, masters, layout)
    run(backend, "sgd", nearest)
    assert not torch.equal(actual.params[-1], nearest.params[-1])


def test_stochastic_rounding_is_right_on_average(backend):
    exact = torch.full((65536,), 1 + 2**-10)  # an eighth of the way from 1 to the next bfloat16
    params = [torch.zeros(65536, dtype=torch.bfloat16)]
    lists = (params, [torch.zeros_like(params[0])], [], [exact.clone()], [torch.zeros(())])
    scalars = map(torch.tensor, (1.0, 0.0, 0.0))
    signatures.call(backend, "sgd_step_", *lists, *scalars, seed=torch.tensor(3))
    assert set(params[0].unique().tolist()) == {1.0, 1 + 2**-7}
    # 65,536 draws of probability 1/8: three standard deviations are 0.004.
    assert abs(float((params[0] > 1).double().mean()) - 1 / 8) < 0.004


@each_op
def test_lists_that_do_not_fit_are_refused_before_any_write(backend, op):
    inputs = Inputs(torch.float32, False)
    before = copies(inputs.params)
    inputs.steps = inputs.steps[:-1]
    with pytest.raises(ValueError, match="expected one of steps for each of params"):
        run(backend, op, inputs)
    inputs = Inputs(torch.float32, False)
    inputs.steps[-1] = torch.zeros((), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="expected steps of float32, float64 or int64"):
        run(backend, op, inputs)
    assert all(map(torch.equal, inputs.params, before))
