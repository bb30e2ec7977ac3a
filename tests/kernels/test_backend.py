"""What the backend says of itself, without running a kernel."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil

import pytest
import torch
from support.fresh_process import fresh_python

import gradalign
from gradalign.backends import dispatch, gpus, reference, triton
from gradalign.backends.signatures import VECTOR_OPS

TRITON = importlib.util.find_spec


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there" if name == "triton" else TRITON(name))


def test_triton_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton.why_unavailable() == "Triton is not installed; pip install triton"


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    reason = "no GPU that this build of torch can use; run on one, with torch's CUDA or ROCm build"
    assert triton.why_unavailable() == reason


def test_no_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no C compiler to build its launcher with; install gcc or clang, or set CC" in str(triton.why_unavailable())
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/gcc" if name == "gcc" else None)
    assert triton.why_unavailable() is None


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU for all that is asked before a kernel is tried."""
    for name, value in {"is_available": True, "device_count": 1, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: False, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/gcc")
    triton.why_not_on.cache_clear()


@pytest.mark.usefixtures("one_gpu")
def test_a_kernel_is_tried_before_it_is_called_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    def launcher(name: str) -> None:
        raise RuntimeError("fatal error: Python.h: No such file or directory")

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch, "zeros", lambda *args, **kwargs: None)
    monkeypatch.setattr(triton, "__getattr__", launcher)
    assert not triton.supports("cuda", frozenset((torch.float32,)))
    assert "its kernels do not run here: RuntimeError: fatal error: Python.h" in str(triton.why_not_on("cuda"))
    triton.why_not_on.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert "expected GPUs of compute capability 8.0 or later; got 7.5" in str(triton.why_not_on("cuda"))
    triton.why_not_on.cache_clear()


@pytest.mark.usefixtures("one_gpu")
def test_kernels_are_tried_on_a_gpu_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert gpus.in_use() == torch.device("cuda", 0)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda index: index >= 2, raising=False)
    assert gpus.in_use() == torch.device("cuda", 2)


def test_what_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "why_not_on", lambda device_type: None)
    three = frozenset((torch.float32, torch.bfloat16, torch.float16))
    assert triton.supports("cuda", three)
    assert not triton.supports("cuda", three | {torch.float64})
    assert not triton.supports("cpu", three)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.supports("cpu", three)
    assert not triton.supports("cuda", three)


def test_named_for_a_cpu_tensor_is_an_error_that_lists_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dispatch._checked.cache_clear()
    model = torch.nn.Linear(2, 1)
    with pytest.raises(RuntimeError, match=r'backend "triton": no GPU .*; available here: .*reference'):
        gradalign.GradAlign(model, weight=0.1, backend="triton").backward(
            lambda x: model(x).sum(), [torch.ones(1, 2)] * 2
        )
    monkeypatch.setattr(triton, "why_unavailable", lambda: None)
    dispatch._checked.cache_clear()
    with pytest.raises(RuntimeError, match=r'backend "triton": does not support torch.float32 on cpu; available here'):
        dispatch.backend("triton", "cpu", frozenset((torch.float32,)))
    dispatch._checked.cache_clear()


def test_it_has_the_functions_of_the_reference() -> None:
    code = "from gradalign.backends import triton; print([n for n in %r if not callable(getattr(triton, n))])"
    pytest.importorskip("triton")
    names = [*VECTOR_OPS, "step_"]
    assert fresh_python("-c", code % names, check=True).stdout == "[]\n"
    assert all(callable(getattr(reference, name)) for name in names)
    with pytest.raises(AttributeError, match="no attribute 'frobnicate_'"):
        _ = triton.frobnicate_


def test_triton_is_imported_when_an_op_is_asked_for() -> None:
    code = "import sys, gradalign.backends.triton as t; t.why_unavailable(); print('triton' in sys.modules)"
    assert fresh_python("-c", code, check=True).stdout == "False\n"
