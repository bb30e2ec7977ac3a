"""The vector ops against float64: the cases of every backend, in every dtype and layout."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.op_cases import (  # noqa: F401
    test_accumulate,
    test_combine,
    test_denormals_are_not_flushed,
    test_displaced_params_are_displaced_anew_from_their_backups,
    test_every_16_bit_number_and_every_tie_rounds_to_nearest_even,
    test_non_finite_values_pass_through,
    test_norm_dot,
    test_perturb,
    test_perturb_from_backups_that_are_directions_too,
    test_perturb_from_backups_that_are_the_params,
    test_perturb_from_wider_backups,
    test_perturb_takes_backups_that_are_a_direction,
    test_restore_and_swap_keep_every_bit,
    test_restore_rounds_wider_backups,
    test_scale_zero_selects,
    test_sums_over_gradients_that_cancel_are_as_precise_as_steps_take_them_to_be,
)

import gradalign
from gradalign.backends import dispatch
from gradalign.kernels.sweep import BLOCK, CHUNK


@pytest.fixture
def backend() -> ModuleType:
    return dispatch.load("triton")


def test_many_tensors_of_every_dtype_in_one_call(backend: ModuleType) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    params = [torch.arange(float(i % 7)).to(dtypes[i % 3]) for i in range(60)]
    backups = [torch.empty_like(p) for p in params]
    xs = [torch.full_like(p, i, dtype=dtypes[i % 2]) for i, p in enumerate(params)]
    sums = backend.perturb_(params, backups, xs, torch.tensor(0.5))
    for i, (p, backup) in enumerate(zip(params, backups, strict=True)):
        assert backup.tolist() == list(range(i % 7))
        assert p.tolist() == [j + 0.5 * i for j in range(i % 7)]
    assert sums.tolist() == [sum((i % 7) * (0.5 * i) ** 2 for i in range(60))] * 3


def test_a_tensor_of_several_chunks(backend: ModuleType) -> None:
    n = 2 * CHUNK + BLOCK + 1
    accs, grads = [torch.arange(n) % 8 + 0.0], [torch.ones(n)]
    sums = backend.accumulate_(accs, grads, torch.tensor(2.0))
    assert torch.equal(accs[0], torch.arange(n) % 8 + 2.0)
    assert sums.tolist() == [n, int((torch.arange(n) % 8).sum())]


@pytest.mark.filterwarnings("ignore:overflow")
def test_the_range_of_the_sums_is_the_one_that_is_documented(backend: ModuleType) -> None:
    """The squares of 128 elements are added in float32."""
    for value in (1e-19, 1.6e18):
        (x,) = torch.full((1, CHUNK), value)
        assert float(backend.norm_dot([x])[0]) == pytest.approx(CHUNK * float(x[0].double()) ** 2, rel=1e-6)
    assert float(backend.norm_dot([torch.full((CHUNK,), 1.7e18)])[0]) == float("inf")
    assert float(backend.norm_dot([torch.full((CHUNK,), 1e-23)])[0]) == 0


def test_no_elements_at_all(backend: ModuleType) -> None:
    nothing = [torch.empty(0), torch.empty(2, 0)]
    assert backend.norm_dot(nothing, nothing).tolist() == [0, 0, 0]
    backend.swap_(nothing, [torch.empty(0), torch.empty(2, 0)])


@given(
    sizes=st.lists(st.integers(0, 2 * BLOCK + 1), min_size=1, max_size=3),
    offsets=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.bfloat16, torch.float16])] * 2),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_combine_of_any_sizes_and_alignments(sizes: list[int], offsets: tuple, dtypes: tuple) -> None:
    def at(offset: int, dtype: torch.dtype, value: int) -> list[torch.Tensor]:
        return [(torch.arange(n + offset) % 16 + value).to(dtype)[offset:] for n in sizes]

    xs, ys = at(offsets[0], dtypes[0], 1), at(offsets[1], dtypes[1], 2)
    outs = at(offsets[0], dtypes[1], 0)
    sums = dispatch.load("triton").combine_(outs, xs, ys, torch.tensor(2.0), torch.tensor(-1.0))
    expected = [2 * x.float() - y.float() for x, y in zip(xs, ys, strict=True)]
    assert all(torch.equal(o.float(), e) for o, e in zip(outs, expected, strict=True))
    assert sums.item() == sum(float(e.square().sum()) for e in expected)


@pytest.mark.parametrize("op", ["perturb_", "restore_", "swap_", "accumulate_", "combine_"])
def test_version_counters_tell_what_was_written(backend: ModuleType, op: str) -> None:
    first, second, third = ([torch.ones(5), torch.ones(5, 4)[:, ::2]] for _ in range(3))
    one = torch.tensor(1.0)
    args, written = {
        "perturb_": ((first, second, third, one), (first, second)),
        "restore_": ((first, second), (first,)),
        "swap_": ((first, second), (first, second)),
        "accumulate_": ((first, second, one), (first,)),
        "combine_": ((first, second, third, one, one), (first,)),
    }[op]
    before = [[t._version for t in tensors] for tensors in (first, second, third)]
    getattr(backend, op)(*args)
    for tensors, versions in zip((first, second, third), before, strict=True):
        bumped = [t._version > v for t, v in zip(tensors, versions, strict=True)]
        assert bumped == [any(tensors is w for w in written)] * 2


def test_the_whole_aligner_runs_on_it() -> None:
    def gradients(name: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        batches = list(torch.randn(4, 5, 3))
        aligner = gradalign.GradAlign(model, weight=0.1, objective="variance", backend=name)
        aligner.backward(lambda batch: model(batch).square().mean(), batches)
        return [p.grad for p in model.parameters()]

    torch.testing.assert_close(gradients("triton"), gradients("reference"), rtol=1e-5, atol=1e-6)
