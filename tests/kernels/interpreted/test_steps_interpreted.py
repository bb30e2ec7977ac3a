"""The optimizer steps against the reference in float64: the cases of the native backend."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from support import kernel_cases
from support.step_cases import (  # noqa: F401
    test_16_bit_state_is_computed_in_float32_and_rounded_once,
    test_a_skipped_step_only_clears_gradients,
    test_a_step_is_that_of_the_reference_in_float64,
    test_a_step_that_is_not_skipped_is_a_step,
    test_no_decay_leaves_an_infinite_parameter_alone,
    test_stochastic_rounding_draws_the_bits_of_the_reference,
)

from gradalign.backends import signatures, triton
from gradalign.backends.rounding import RoundingStream
from gradalign.kernels.sweep import CHUNK


@pytest.fixture(autouse=True)
def _fewer_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ops walk through tensors as the steps do, and are tested at every length; a step has the longer kernels."""
    monkeypatch.setattr(kernel_cases.tensors, "__defaults__", (((), (3,), (0,), (41, 25)),))


@pytest.fixture
def backend() -> ModuleType:
    return triton


def scalars(grad_scale: float, lr: float, weight_decay: float) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.tensor, (grad_scale, lr, weight_decay)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_coefficients_are_those_of_float64_at_any_t(dtype: torch.dtype) -> None:
    steps = [torch.tensor(t - 1, dtype=dtype) for t in (1, 2, 1000, 123457)]
    params, grads, v = ([torch.ones(1) for _ in steps] for _ in range(3))
    m = [torch.ones(1) for _ in steps]
    signatures.call(
        triton, "adamw_step_", params, grads, m, v, [], [], steps, *scalars(1, 0.25, 0), beta1=0.9, beta2=0.999, eps=0.0
    )
    for p, s, t in zip(params, steps, (1, 2, 1000, 123457), strict=True):
        assert s.item() == t
        expected = 1 - 0.25 / (1 - 0.9**t) * math.sqrt(1 - 0.999**t)
        assert math.isclose(p.item(), expected, rel_tol=2e-7, abs_tol=2e-7)


def test_steps_of_different_dtypes_in_one_list() -> None:
    steps = [torch.tensor(4.0), torch.tensor(4)]
    params, grads = ([torch.ones(2), torch.ones(2)] for _ in range(2))
    signatures.call(triton, "sgd_step_", params, grads, [], [], steps, *scalars(1, 0.5, 0))
    assert [p.tolist() for p in params] == [[0.5, 0.5]] * 2
    assert [s.item() for s in steps] == [5, 5]


def test_a_lamb_tensor_of_several_chunks_has_one_ratio() -> None:
    n = CHUNK + 1000
    params, grads, m, v = [torch.full((n,), 3.0)], [torch.ones(n)], [torch.zeros(n)], [torch.zeros(n)]
    steps = [torch.zeros(())]
    signatures.call(
        triton, "lamb_step_", params, grads, m, v, [], steps, *scalars(1, 0.5, 0), beta1=0.9, beta2=0.99, eps=0.0
    )
    # u is 1 everywhere and ||p|| / ||u|| is 3.
    torch.testing.assert_close(params[0], torch.full((n,), 1.5), rtol=1e-6, atol=0)


def test_versions_of_all_that_a_step_writes() -> None:
    params, grads, m, v = ([torch.ones(3)] for _ in range(4))
    steps = [torch.zeros(())]
    signatures.call(
        triton, "adamw_step_", params, grads, m, v, [], [], steps, *scalars(1, 0.1, 0), beta1=0.9, beta2=0.99, eps=1e-8
    )
    assert [t[0]._version for t in (params, grads, m, v, steps)] == [1, 0, 1, 1, 1]


def test_stochastic_rounding_far_into_a_tensor_is_the_stream_of_the_reference() -> None:
    n = CHUNK + 300
    values = torch.linspace(1, 2, n)
    params, masters, steps = [torch.zeros(n, dtype=torch.bfloat16)], [values.clone()], [torch.tensor(6.0)]
    seed = torch.tensor(-(2**40) + 12345)
    zeros = [torch.zeros(n, dtype=torch.bfloat16)]
    signatures.call(triton, "sgd_step_", params, zeros, [], masters, steps, *scalars(1, 0, 0), seed=seed)
    expected = RoundingStream(seed, 0, torch.tensor(7.0, dtype=torch.float64)).round(values)
    assert torch.equal(params[0], expected)
