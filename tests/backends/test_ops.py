"""Every backend x op x dtype x layout against float64, and what the public ops refuse."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_cases import DTYPES, assert_stored, copies, tensors
from support.op_cases import (  # noqa: F401
    SCALE,
    test_a_thousand_small_tensors,
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

from gradalign import ops
from gradalign.backends import dispatch

BACKENDS = ("reference", "native")


@pytest.fixture(params=BACKENDS)
def backend(request):
    module = dispatch.load(request.param)
    reason = module.why_unavailable()
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return module


TESTS = Path(__file__).resolve().parents[1]
TOO_LONG = {"test_a_thousand_small_tensors"}  # for an interpreter; the file has a test of many tensors that is its own


@pytest.mark.parametrize(
    ("suite", "without"),
    [
        ("backends/test_ops.py", set()),
        ("cuda/test_cuda_ops.py", set()),
        ("kernels/interpreted/test_ops_interpreted.py", TOO_LONG),
    ],
)
def test_every_suite_imports_every_case(suite, without):
    cases = ast.parse((TESTS / "support" / "op_cases.py").read_text()).body
    names = {case.name for case in cases if isinstance(case, ast.FunctionDef) and case.name.startswith("test_")}
    imports = [node for node in ast.parse((TESTS / suite).read_text()).body if isinstance(node, ast.ImportFrom)]
    imported = {alias.name for node in imports if node.module == "support.op_cases" for alias in node.names}
    assert names - imported == without


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3).map(tuple), min_size=1, max_size=6).map(tuple),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["contiguous", "misaligned", "transposed", "strided"]),
    scale=st.floats(-8, 8, width=32),
    name=st.sampled_from(BACKENDS),
)
def test_any_shapes(shapes, dtype, layout, scale, name):
    backend = dispatch.load(name)
    if backend.why_unavailable() is not None:
        return
    params, xs = tensors(dtype, layout, 1, shapes), tensors(dtype, "contiguous", 2, shapes)
    theta = copies(params)
    backups = [torch.zeros_like(p) for p in params]
    backend.perturb_(params, backups, xs, torch.tensor(scale, dtype=torch.float64))
    exact = [t.double() + scale * x.double() for t, x in zip(theta, xs, strict=True)]
    assert_stored(
        params, exact, [t.double().abs() + abs(scale) * x.double().abs() for t, x in zip(theta, xs, strict=True)]
    )
    backend.restore_(params, backups)
    assert all(map(torch.equal, params, theta))


@pytest.mark.slow
def test_a_norm_over_a_billion_elements():
    native = dispatch.load("native")
    if native.why_unavailable() is not None:
        pytest.skip(native.why_unavailable())
    row = torch.randn(1 << 20) + 3
    exact = float(row.double().square().sum()) * 1000
    assert abs(float(native.norm_dot([row.expand(1000, -1)])[0]) / exact - 1) < 1e-12


def test_overlapping_tensors_are_refused():
    base = torch.zeros(10)
    with pytest.raises(ValueError, match="share memory"):
        ops.perturb_([base[:6]], [base[4:]], [torch.ones(6)], SCALE)
    with pytest.raises(ValueError, match="share memory"):
        ops.combine_([base[:6]], [base[1:7]], [torch.ones(6)], SCALE, SCALE)
    with pytest.raises(ValueError, match="expanded"):
        ops.accumulate_([torch.zeros(1).expand(6)], [torch.ones(6)], SCALE)
    assert base.eq(0).all()


def test_a_backup_is_the_memory_of_a_direction(backend):
    params, backups = [torch.zeros(5)], [torch.arange(5.0)]
    sums = backend.perturb_(params, backups, [backups[0].detach()], torch.tensor(1.0))
    assert sums.tolist() == [30.0, 30.0, 30.0]
    assert params[0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert backups[0].tolist() == [0.0] * 5


@pytest.mark.parametrize("num", [2, 40])
def test_a_read_in_place_does_not_hide_another_one(num):
    """The first of two reads of one tensor is in its own place, the second is not."""
    xs = [torch.ones(3) for _ in range(num)]
    with pytest.raises(ValueError, match="share memory"):
        ops.combine_(xs, [xs[0], xs[0], *xs[2:]], [torch.zeros(3) for _ in xs], SCALE, SCALE)
    assert all(x.eq(1).all() for x in xs)


ONES = [torch.ones(3), torch.ones(3)]
NO_LISTS = {
    "an iterator": (lambda: ops.norm_dot(iter(ONES)), r"expected xs to be a list.*got list_iterator; pass list\(xs\)"),
    "a generator beside a list": (lambda: ops.norm_dot(ONES, (x for x in ONES)), r"expected ys.*pass list\(ys\)"),
    "parameters()": (lambda: ops.restore_(torch.nn.Linear(1, 1).parameters(), ONES), r"pass list\(params\)"),
    "a tensor": (lambda: ops.norm_dot(torch.ones(3)), r"got Tensor; pass \[xs\]"),
    "a dict": (lambda: ops.norm_dot({"a": torch.ones(3)}), "got dict"),
    "a missing gradient": (lambda: ops.accumulate_(ONES, [ONES[0], None], SCALE), r"got NoneType in grads\[1\]"),
    "a number": (
        lambda: ops.accumulate_([torch.ones(3)], [ONES[0]], 0.5),
        r"scale to be a 0-dim tensor.*got float \(0.5\)",
    ),
    "a number for lr": (
        lambda: ops.sgd_step_([torch.ones(3)], [ONES[0]], [], [], [torch.zeros(())], SCALE, 0.1, SCALE),
        "lr to be a 0-dim tensor.*got float",
    ),
    "narrow backups": (
        lambda: ops.perturb_([torch.ones(3)], [torch.ones(3, dtype=torch.bfloat16)], [ONES[0]], SCALE),
        r"backups\[0\] to be torch.float32, as params\[0\]; got torch.bfloat16",
    ),
    "narrow masters": (
        lambda: ops.perturb_(
            [torch.ones(3)], [torch.ones(3, dtype=torch.float16)], [ONES[0]], SCALE, from_backups=True
        ),
        "torch.float32 or wider",
    ),
    "a swap that rounds": (
        lambda: ops.swap_([torch.ones(3)], [torch.ones(3, dtype=torch.float64)]),
        "bit for bit",
    ),
}


@pytest.mark.parametrize("case", NO_LISTS)
def test_what_is_no_list_of_tensors_or_no_scalar_is_refused(case):
    call, message = NO_LISTS[case]
    with pytest.raises(TypeError, match=message):
        call()


def test_a_second_direction_and_its_scale_come_together():
    theta, backups = [torch.ones(3)], [torch.zeros(3)]
    for further in ({"ys": [ONES[0]]}, {"scale_y": SCALE}):
        with pytest.raises(ValueError, match="ys and scale_y together"):
            ops.perturb_(theta, backups, [ONES[0]], SCALE, **further)
    assert theta[0].eq(1).all()


def test_a_parameter_list_is_a_list():
    parameters = torch.nn.ParameterList(ONES)
    assert ops.norm_dot(parameters)[0] == 6


def test_empty_lists(backend):
    assert backend.norm_dot([]).tolist() == [0, 0, 0]
    assert backend.norm_dot([], []).tolist() == [0, 0, 0]
    assert backend.perturb_([], [], [], SCALE).tolist() == [0, 0, 0]
    assert backend.accumulate_([], [], SCALE).tolist() == [0, 0]
    assert backend.combine_([], [], [], SCALE, SCALE).tolist() == [0]
