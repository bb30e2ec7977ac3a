"""Finding nvcc, choosing architectures, and what is said where there is no GPU."""

from __future__ import annotations

import json

import pytest
import torch

from gradalign.backends import native
from gradalign.extension import cuda, loading


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """Makes a toolkit with an nvcc that says this."""

    def make(says):
        nvcc = tmp_path / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text(f"#!/bin/sh\necho '{says}'\n")
        nvcc.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        return str(nvcc)

    return make


def test_nvcc_of_cuda_home_comes_first(toolkit):
    nvcc = toolkit("Cuda compilation tools, release 12.4, V12.4.99")
    assert cuda.find_nvcc() == nvcc
    assert cuda.nvcc_version(nvcc) == "12.4"


def test_an_old_nvcc_is_refused(toolkit):
    toolkit("Cuda compilation tools, release 11.8, V11.8.89")
    with pytest.raises(ModuleNotFoundError, match="expected the nvcc of CUDA 12.1 or later; got 11.8"):
        cuda.find_nvcc()


def test_an_nvcc_that_does_not_answer_is_refused(toolkit):
    toolkit("hello")
    with pytest.raises(ModuleNotFoundError, match="does not say which release it is; set CUDA_HOME"):
        cuda.find_nvcc()


def test_no_nvcc(monkeypatch):
    monkeypatch.setattr(cuda.shutil, "which", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match="nvcc is missing; install the CUDA toolkit"):
        cuda.find_nvcc()


@pytest.mark.parametrize(
    ("listed", "present", "expected"),
    [
        ("", (), ("8.0", "9.0", "10.0+PTX")),
        ("", ((9, 0), (8, 0), (9, 0)), ("8.0", "9.0")),
        ("9.0a;8.6+PTX", ((9, 0),), ("9.0a", "8.6+PTX")),
        ("8.0 9.0", (), ("8.0", "9.0")),
    ],
)
def test_architectures(monkeypatch, toolkit, listed, present, expected):
    toolkit("Cuda compilation tools, release 12.8, V12.8.61")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert cuda.architectures(present) == expected


def test_an_nvcc_from_before_blackwell_is_not_asked_for_it(monkeypatch, toolkit):
    toolkit("Cuda compilation tools, release 12.6, V12.6.85")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert cuda.architectures() == ("8.0", "9.0+PTX")


def test_an_architecture_that_is_not_understood(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(ModuleNotFoundError, match='TORCH_CUDA_ARCH_LIST: expected names such as "9.0" or "9.0\\+PTX"'):
        cuda.architectures()


def test_options_for_nvcc():
    assert cuda.code_flags(("8.0", "10.0+PTX")) == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    )


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_ahead_of_time_needs_a_torch_with_cuda():
    with pytest.raises(ModuleNotFoundError, match="the CUDA kernels need a torch with CUDA"):
        cuda.ahead_of_time()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_reason_is_told():
    if native.why_unavailable() is not None:
        pytest.skip(native.why_unavailable())
    assert native.why_not_on("cpu") is None
    assert native.why_not_on("cuda") == "no GPU that this build of torch can use"
    assert native.why_not_on("mps") == "there are no native kernels for mps"
    assert not native.supports("cuda", frozenset({torch.float32}))


def test_the_key_of_a_binary_depends_on_compiler_and_architectures(toolkit):
    toolkit("release 12.4,")
    first = cuda.cuda(("9.0",))
    assert first.key("g++ 12") != cuda.cuda(("8.0",)).key("g++ 12")
    assert all(unit.compiler == first.linker for unit in first.units)


@pytest.mark.parametrize(
    ("names", "present", "covered"),
    [
        (("9.0",), [(9, 0)], True),
        (("8.0",), [(8, 6)], True),
        (("8.6",), [(8, 0)], False),
        (("8.0",), [(9, 0)], False),
        (("8.0+PTX",), [(9, 0)], True),
        (("9.0+PTX",), [(8, 0)], False),
        (("9.0a",), [(9, 0)], True),
        (("10.0f",), [(10, 3)], False),
        (("8.0", "9.0"), [(8, 0), (9, 0)], True),
        (("8.0", "9.0"), [(8, 0), (10, 0)], False),
        ((), [], True),
        ((), [(9, 0)], False),
    ],
)
def test_what_was_compiled_runs_on_a_gpu(names, present, covered):
    assert cuda.cover(names, present) is covered


def test_a_binary_of_the_wheel_needs_no_nvcc_and_must_know_the_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "__file__", str(tmp_path / "extension" / "loading.py"))
    monkeypatch.setattr(cuda, "find_nvcc", lambda: pytest.fail("asked for nvcc"))
    wanted = cuda.contents([(9, 0)])
    made = {"digest": wanted.digest(), "built_for": wanted.built_for, "architectures": "8.0 9.0"}
    (tmp_path / wanted.name).touch()
    record = (tmp_path / wanted.name).with_suffix(".json")
    record.write_text(json.dumps(made))
    assert loading.shipped(wanted) == tmp_path / wanted.name
    record.write_text(json.dumps({**made, "architectures": "8.0"}))
    assert loading.shipped(wanted) is None
    record.write_text(json.dumps({**made, "digest": "another"}))
    assert loading.shipped(wanted) is None
