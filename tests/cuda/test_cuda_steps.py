"""The CUDA optimizer steps against those of the CPU, which are tested against the reference: the functors are the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.kernel_cases import copies, tensors

from gradalign.backends import native, signatures

if native.why_unavailable() is not None:
    pytest.skip(f"native: {native.why_unavailable()}", allow_module_level=True)

# Dtypes of the parameters, the gradients and the moments; those with kernels of their own, and some without.
MIXES = {
    "fp32": (torch.float32, torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "bf16, fp32 moments": (torch.bfloat16, torch.bfloat16, torch.float32),
    "fp16, fp32 moments": (torch.float16, torch.float16, torch.float32),
    "bf16, fp32 gradients": (torch.bfloat16, torch.float32, torch.float32),
}
SHAPES = ((), (3,), (0,), (33, 31), (8193,), (40, 60))
OPS = ("adamw", "sgd", "sgd without momentum", "lamb")
each_op = pytest.mark.parametrize("op", OPS)


class Inputs:
    """One step's lists, the second tensor at its second step."""

    def __init__(self, mix, masters=False, layout="contiguous"):
        param, grad, moment = MIXES[mix]
        values = tensors(torch.float32, layout, 1, SHAPES)
        self.params = [t.to(param) for t in values]
        self.masters = copies(values) if masters else []
        self.grads = tensors(grad, layout, 2, SHAPES)
        self.m = [(t / 8).to(moment) for t in tensors(torch.float32, layout, 3, SHAPES)]
        self.v = [t.abs().to(moment) for t in tensors(torch.float32, layout, 4, SHAPES)]
        self.largest = [t.abs().to(moment) for t in tensors(torch.float32, layout, 5, SHAPES)]
        self.steps = [torch.tensor(float(i % 2)) for i in range(len(SHAPES))]

    def lists(self):
        return (self.params, self.masters, self.grads, self.m, self.v, self.largest, self.steps)


def step(backend, op, i, flag=False, lr=0.01, **options):
    scalars = (torch.tensor(0.5), torch.tensor(lr, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64))
    options = {"maximize": flag, "zero_grads": flag, **options}
    adam = {"beta1": 0.9, "beta2": 0.99}
    if op == "adamw":
        lists = (i.params, i.grads, i.m, i.v, i.largest if flag else [], i.masters, i.steps)
        options |= {**adam, "eps": 1e-8, "decoupled": not flag}
    elif op == "lamb":
        lists = (i.params, i.grads, i.m, i.v, i.masters, i.steps)
        options |= {**adam, "eps": 1e-6, "trust": not flag}
    else:
        buffers, momentum = (i.m, 0.9) if op == "sgd" else ([], 0.0)
        lists = (i.params, i.grads, buffers, i.masters, i.steps)
        options |= {"momentum": momentum, "nesterov": flag and momentum > 0}
    signatures.call(backend, f"{op.split()[0]}_step_", *lists, *scalars, **options)


def assert_same(actual, expected, close):
    """Bit for bit; `close` where a sum (LAMB's norms) or the device's pow comes in.

    Within two units in the last place, of the step where that is longer than what is left of the parameter (steps are of 0.1).
    """
    for ours, theirs in zip(actual.lists(), expected.lists(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if close:
                eps = torch.finfo(a.dtype).eps
                torch.testing.assert_close(a, b, rtol=2 * max(eps, 2**-23), atol=2 * max(eps, 2**-23) * 1e-1)
            else:
                assert torch.equal(a, b)


@each_op
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("flag", [False, True], ids=["plain", "maximize, clear, nesterov, amsgrad, coupled"])
def test_a_step_is_that_of_the_cpu(backend, op, mix, flag):
    actual, expected = Inputs(mix), Inputs(mix)
    step(backend, op, actual, flag)
    step(native, op, expected, flag)
    assert_same(actual, expected, close=op == "lamb" or not hasattr(backend, "IS_EMULATED"))
    assert all(bool(g.eq(0).all()) == flag for g in actual.grads if g.numel())
    assert [float(s) for s in actual.steps] == [1, 2, 1, 2, 1, 2]


@each_op
@pytest.mark.parametrize(
    ("mix", "flag"), [*itertools.product(["bf16, fp32 moments", "fp16, fp32 moments"], [False, True])]
)
def test_masters_are_stepped_and_parameters_are_their_rounding(backend, op, mix, flag):
    actual, expected = Inputs(mix, masters=True), Inputs(mix, masters=True)
    step(backend, op, actual, flag)
    step(native, op, expected, flag)
    assert_same(actual, expected, close=op == "lamb" or not hasattr(backend, "IS_EMULATED"))
    assert all(torch.equal(p, m.to(p.dtype)) for p, m in zip(actual.params, actual.masters, strict=True))


@each_op
@pytest.mark.parametrize("layout", ["misaligned", "transposed", "strided"])
@pytest.mark.parametrize("mix", ["fp32", "bf16, fp32 moments"])
def test_any_layout(backend, op, layout, mix):
    actual, expected = Inputs(mix, layout=layout), Inputs(mix, layout=layout)
    step(backend, op, actual)
    step(native, op, expected)
    assert_same(actual, expected, close=op == "lamb" or not hasattr(backend, "IS_EMULATED"))


@each_op
@pytest.mark.parametrize("mix", ["fp32", "bf16, fp32 gradients"])
@pytest.mark.parametrize("skip", [1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("zero_grads", [False, True])
def test_a_skipped_step_only_clears_gradients(backend, op, mix, skip, zero_grads):
    inputs = Inputs(mix)
    inputs.grads[3].fill_(float("inf"))
    before = [copies(ts) for ts in inputs.lists()]
    step(backend, op, inputs, skip=torch.tensor(skip), zero_grads=zero_grads)
    for now, then in zip(inputs.lists(), before, strict=True):
        if now is inputs.grads and zero_grads:
            assert all(g.eq(0).all() for g in now)
        else:
            assert all(map(torch.equal, now, then))


@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "strided"])
@pytest.mark.parametrize("masters", [False, True])
@each_op
def test_stochastic_rounding_draws_the_bits_of_the_cpu(backend, op, masters, layout):
    seed = torch.tensor(-(2**40) + 12345)
    actual, expected = (Inputs("bf16, fp32 moments", masters, layout) for _ in range(2))
    nearest = Inputs("bf16, fp32 moments", masters, layout)
    step(backend, op, actual, seed=seed)
    step(native, op, expected, seed=seed)
    step(native, op, nearest)
    assert_same(actual, expected, close=op == "lamb" or not hasattr(backend, "IS_EMULATED"))
    assert not torch.equal(actual.params[4], nearest.params[4])


@pytest.mark.parametrize("count", [torch.float32, torch.float64, torch.int64, torch.int32], ids=str)
def test_counts_of_any_type(backend, count):
    inputs = Inputs("fp32")
    inputs.steps = [s.to(count) for s in inputs.steps]
    step(backend, "adamw", inputs)
    assert [s.item() for s in inputs.steps] == [1, 2, 1, 2, 1, 2]
    assert all(s.dtype == count for s in inputs.steps)


def test_more_tensors_than_a_table_holds(backend):
    shapes = tuple((1 + i % 5,) for i in range(2500))
    lists = [tensors(torch.float32, "contiguous", seed, shapes) for seed in (1, 2, 3)]
    lists[2] = [v.abs() for v in lists[2]]
    grads = tensors(torch.float32, "contiguous", 4, shapes)
    scalars = (torch.tensor(0.5), torch.tensor(0.01), torch.tensor(0.1))
    results = []
    for kernels in (backend, native):
        p, m, v = (copies(ts) for ts in lists)
        steps = [torch.zeros(()) for _ in shapes]
        signatures.call(kernels, "lamb_step_", p, grads, m, v, [], steps, *scalars, beta1=0.9, beta2=0.99, eps=1e-6)
        assert all(s == 1 for s in steps)
        results.append(p)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@each_op
def test_lists_that_do_not_fit_are_refused_before_any_write(backend, op):
    inputs = Inputs("fp32")
    before = copies(inputs.params)
    inputs.steps = inputs.steps[:-1]
    with pytest.raises(ValueError, match="expected one of steps for each of params"):
        step(backend, op, inputs)
    inputs = Inputs("fp32")
    inputs.steps[-1] = torch.zeros((), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="expected steps of float32, float64 or int64"):
        step(backend, op, inputs)
    assert all(map(torch.equal, inputs.params, before))
