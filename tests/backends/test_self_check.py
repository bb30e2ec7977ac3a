"""Kernels are compared with plain torch before their use on a GPU: each wrong op is noticed, and no right one is accused."""

from __future__ import annotations

import logging
import types

import pytest
import torch
from support.cuda.cuda_backends import cuda_backend
from torch.utils._python_dispatch import TorchDispatchMode

from gradalign.backends import dispatch, gpus, native, reference, self_check, triton
from gradalign.backends.signatures import SCALAR_OPS, STEPS, VECTOR_OPS

CPU = torch.device("cpu")
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
each_dtype = pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)


def altered(op, alter):
    """`reference` with `alter(run, *args)` in the place of an op; of a step, args are tensors, scalars and options."""
    module = types.ModuleType("wrong")
    for name in (*VECTOR_OPS, *SCALAR_OPS):
        setattr(module, name, getattr(reference, name))

    def step(tensors, scalars, options):
        return (
            alter(reference.step_, tensors, scalars, options)
            if options.op == op
            else reference.step_(tensors, scalars, options)
        )

    module.step_ = step
    if op not in STEPS:
        setattr(module, op, lambda *args, **kwargs: alter(getattr(reference, op), *args, **kwargs))
    return module


def lists(args):
    """The lists of tensors among the arguments of an op or a step."""
    for arg in args:
        if isinstance(arg, (list, tuple)):
            yield from [arg] if isinstance(arg, list) else lists(arg)


def last_element_moved(run, *args, number=0, **kwargs):
    result = run(*args, **kwargs)
    written = [ts for ts in lists(args) if ts][number]
    last = written[-1] if written[-1].ndim else written[-2]
    last.view(-1)[-1] *= 1.02
    return result


def result_moved(run, *args, **kwargs):
    return run(*args, **kwargs) * (1 + 1e-4)


def result_missing(run, *args, **kwargs):
    run(*args, **kwargs)


def broken(run, *args, **kwargs):
    raise RuntimeError("an illegal instruction was encountered")


def nothing_written(run, *args, **kwargs):
    return run(*[[t.clone() for t in arg] if isinstance(arg, list) else arg for arg in args], **kwargs)


MUTATING = [op for op, schema in VECTOR_OPS.items() if "!" in schema]
RETURNING = [op for op, schema in {**VECTOR_OPS, **SCALAR_OPS}.items() if schema.endswith("-> Tensor")]


@each_dtype
def test_reference_passes(dtype):
    assert self_check.why_wrong(reference, CPU, dtype) is None


@each_dtype
def test_the_kernels_for_the_cpu_pass(dtype):
    if native.why_unavailable() is not None:
        pytest.skip(native.why_unavailable())
    assert self_check.why_wrong(native, CPU, dtype) is None


@each_dtype
def test_the_cuda_kernels_pass_on_an_emulated_gpu(dtype):
    assert self_check.why_wrong(cuda_backend("emulated"), CPU, dtype) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_dtype
@pytest.mark.parametrize("backend", [native, triton], ids=lambda backend: backend.NAME)
def test_a_gpu_passes(backend, dtype):
    if backend.supports("cuda", frozenset({F32})) and not backend.supports("cuda", frozenset({dtype})):
        pytest.skip(f"{backend.NAME} has no kernels for {dtype}")
    assert dispatch.missing(backend.NAME, "cuda", frozenset({dtype})) is None
    with torch.cuda.device(gpus.in_use()):
        before = torch.cuda.get_rng_state()
        assert self_check.why_wrong(backend, gpus.in_use(), dtype) is None
        assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_checked_where_waiting_is_an_error_and_not_while_a_graph_is_captured(fresh):
    x = torch.zeros(1, device=gpus.in_use())
    assert dispatch.missing("native", "cuda", frozenset({F32})) is None  # loads the kernels, which no capture takes
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x += 1
        assert dispatch.backend("auto", "cuda", frozenset({F32})) is native
    assert self_check._found.cache_info().currsize == 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert dispatch.wrong("native", "cuda", frozenset({F32})) is None
        assert torch.cuda.get_sync_debug_mode() == 2
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", [*VECTOR_OPS, *STEPS, *SCALAR_OPS])
def test_an_op_that_raises_is_named(op):
    reason = self_check.why_wrong(altered(op, broken), CPU, F32)
    assert reason.startswith(f"its self-check on cpu failed: {op} (")
    assert reason.endswith(") raised RuntimeError: an illegal instruction was encountered")


@each_dtype
@pytest.mark.parametrize("op", [*MUTATING, *STEPS])
def test_one_element_that_is_off_is_noticed(op, dtype):
    reason = self_check.why_wrong(altered(op, last_element_moved), CPU, dtype)
    assert f"failed: {op} (" in reason
    assert "times what rounding explains" in reason


@each_dtype
@pytest.mark.parametrize("op", RETURNING)
def test_a_returned_number_that_is_off_by_a_ten_thousandth_is_noticed(op, dtype):
    reason = self_check.why_wrong(altered(op, result_moved), CPU, dtype)
    assert f"failed: {op} (" in reason
    assert "times what rounding explains" in reason


@pytest.mark.parametrize("op", RETURNING)
def test_a_result_that_is_not_returned_is_noticed(op):
    reason = self_check.why_wrong(altered(op, result_missing), CPU, F32)
    assert f"failed: {op} (" in reason
    assert "raised TypeError: expected torch.float64 (" in reason


@pytest.mark.parametrize("op", MUTATING)
def test_an_op_that_writes_nothing_is_noticed(op):
    assert f"failed: {op} (" in self_check.why_wrong(altered(op, nothing_written), CPU, F32)


@pytest.mark.parametrize(
    ("op", "dtype", "number"),
    [
        *((op, dtype, number) for op in ("adamw_step_", "lamb_step_") for dtype in (F32, BF16) for number in (2, 3)),
        *(("sgd_step_", dtype, 2) for dtype in (F32, BF16)),
        ("perturb_", F16, 1),
        ("swap_", F16, 1),
    ],
)
def test_every_list_that_an_op_writes_is_compared(op, dtype, number):
    """Of a step the moments, of a displacement the backups."""

    def alter(run, *args, **kwargs):
        return last_element_moved(run, *args, number=number, **kwargs)

    assert f"failed: {op} (" in self_check.why_wrong(altered(op, alter), CPU, dtype)


@pytest.mark.parametrize("op", STEPS)
def test_masters_are_compared(op):
    def alter(run, tensors, scalars, options):
        run(tensors, scalars, options)
        if tensors.masters:
            tensors.masters[2][7] += 1e-4

    assert f"failed: {op} (bfloat16, float32) is off by 0.0001, " in self_check.why_wrong(altered(op, alter), CPU, BF16)


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("fault", ["skip is not looked at", "steps are not counted", "the gradient is written"])
def test_a_step_that_does_something_else_is_noticed(op, fault):
    def alter(run, tensors, scalars, options):
        if fault == "skip is not looked at":
            scalars = scalars._replace(skip=None)
        elif fault == "steps are not counted":
            tensors = tensors._replace(steps=[step.clone() for step in tensors.steps])
        else:
            tensors.grads[1].zero_()
        run(tensors, scalars, options)

    assert f"failed: {op} (" in self_check.why_wrong(altered(op, alter), CPU, F32)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_numbers_that_are_cut_off_in_place_of_rounded_are_noticed(dtype):
    """Each is off by no more than its last place."""

    def combine_(run, outs, xs, ys, a, b):
        sums = run(outs, xs, ys, a, b)
        for out, x, y in zip(outs, xs, ys, strict=True):
            exact = a.float() * x.float() + b.float() * y.float()
            toward_zero = out.float().abs() > exact.abs()
            out.copy_(torch.where(toward_zero, (out.float() * (1 - torch.finfo(dtype).eps / 2)).to(dtype), out))
        return sums

    assert "of the elements otherwise" in self_check.why_wrong(altered("combine_", combine_), CPU, dtype)


def test_stochastic_rounding_with_other_random_numbers_is_noticed():
    def step(run, tensors, scalars, options):
        run(tensors, scalars if scalars.seed is None else scalars._replace(seed=scalars.seed + 1), options)

    reason = self_check.why_wrong(altered("sgd_step_", step), CPU, BF16)
    assert reason.startswith("its self-check on cpu failed: sgd_step_ (bfloat16) rounds ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_noticed(value):
    def combine_(run, outs, *args):
        sums = run(outs, *args)
        outs[2][100] = value
        return sums

    assert "combine_ (float32) is off by inf, inf times" in self_check.why_wrong(
        altered("combine_", combine_), CPU, F32
    )


def test_a_write_beside_a_tensor_is_noticed():
    def restore_(run, params, backups):
        run(params, backups)
        params[1].as_strided((38,), (1,))[37] = 1

    assert "failed: restore_ (float32) is off" in self_check.why_wrong(altered("restore_", restore_), CPU, F32)


def test_memory_that_runs_out_says_nothing_of_a_kernel():
    def full(run, *args):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        self_check.why_wrong(altered("swap_", full), CPU, F32)


def test_what_the_caller_has_switched_on_does_not_matter():
    modes = [
        torch.inference_mode,
        torch.enable_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ]
    for mode in modes:
        with mode():
            assert self_check.why_wrong(reference, CPU, BF16) is None
    before = torch.get_rng_state()
    torch.set_default_dtype(F64)
    try:
        assert self_check.why_wrong(reference, CPU, F32) is None
    finally:
        torch.set_default_dtype(F32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def fresh():
    """What was chosen and found is kept in a process; not what a test has changed."""
    kept = (dispatch._checked, dispatch._warn, self_check._found)
    for cache in kept:
        cache.cache_clear()
    yield
    for cache in kept:
        cache.cache_clear()


@pytest.fixture
def gpu(fresh, monkeypatch):
    """Native and Triton kernels that claim to be for a GPU; returns what self-checks are to find, and which were made."""
    monkeypatch.setattr(gpus, "in_use", lambda: CPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for module in (native, triton):
        monkeypatch.setattr(module, "why_unavailable", lambda: None)
        monkeypatch.setattr(module, "supports", lambda device_type, dtypes: True)
    state = types.SimpleNamespace(wrong={}, checked=[])

    def why_wrong(backend, device, dtype):
        state.checked.append((backend.NAME, dtype))
        return state.wrong.get((backend.NAME, dtype))

    monkeypatch.setattr(self_check, "why_wrong", why_wrong)
    return state


def chosen(name="auto", *dtypes, device_type="cuda"):
    return dispatch.backend(name, device_type, frozenset(dtypes or (F32,))).NAME


def test_a_dtype_is_checked_once(gpu):
    for dtypes in ((F32,), (F32,), (BF16, F32), (BF16,)):
        assert chosen("auto", *dtypes) == chosen("native", *dtypes) == "native"
    assert gpu.checked == [("native", F32), ("native", BF16)]


def test_nothing_is_checked_on_the_cpu_nor_of_reference(gpu):
    assert chosen(device_type="cpu") == "native"
    assert chosen("reference") == "reference"
    assert gpu.checked == []


def test_auto_goes_on_to_the_next_and_warns_once(gpu, caplog):
    caplog.set_level(logging.INFO, logger="gradalign")
    gpu.wrong["native", F32] = "its self-check on cuda failed: swap_ (float32) is off by 1"
    assert chosen("auto", F32) == chosen("auto", F32, BF16) == "triton"
    assert chosen("auto", BF16) == "native"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "backend native is not used: its self-check on cuda failed: swap_ (float32) is off by 1; please report this with what "
        "`gradalign doctor` prints"
    ]
    assert "backend triton on cuda; not native (its self-check on cuda failed" in caplog.text


def test_where_all_are_wrong_plain_torch_is_left(gpu):
    for name in ("native", "triton"):
        gpu.wrong[name, F32] = "its self-check failed"
    assert chosen() == "reference"


def test_a_backend_that_is_asked_for_by_name_is_refused(gpu):
    gpu.wrong["native", F32] = "its self-check on cuda failed: swap_ (float32) is off by 1"
    expected = 'backend "native": its self-check on cuda failed: swap_ (float32) is off by 1; available here: triton, reference'
    for _ in range(2):
        with pytest.raises(RuntimeError) as raised:
            chosen("native")
        assert str(raised.value) == expected
    assert gpu.checked == [("native", F32)]  # others are when they are used


def test_while_a_graph_is_captured_nothing_is_checked_or_kept(gpu, monkeypatch):
    gpu.wrong["native", F32] = "its self-check failed"
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert chosen() == chosen("native") == "native"
    assert gpu.checked == []
    assert chosen() == "triton"


def test_where_torch_does_not_run_what_it_is_told_nothing_is_checked_or_kept(gpu):
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with Mode():
        assert chosen() == "native"
    assert gpu.checked == []
    assert chosen() == "native"
    assert gpu.checked == [("native", F32)]


def test_what_was_checked_before_is_used_while_a_graph_is_captured(gpu, monkeypatch):
    gpu.wrong["native", F32] = "its self-check failed"
    assert chosen() == "triton"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert chosen() == "triton"
