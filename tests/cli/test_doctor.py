import json
import sys
import types

import pytest
import torch
from support.fresh_process import fresh_python

from gradalign import cli
from gradalign.backends import dispatch
from gradalign.cli import doctor, machine


def test_json_names_versions_compilers_devices_and_every_backend(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found["compilers"]) == {"g++", "clang++", "nvcc", "hipcc", "ninja"}
    assert "ninja" not in found["versions"]  # the program that builds is told once, among the compilers
    assert found["training"]["cpu"] in ("native", "reference")
    assert found["devices"]["cpu"]["cores"] >= 1
    assert list(found["backends"]) == list(dispatch.ORDER)
    reference = found["backends"]["reference"]
    assert (reference["works"], reference["why_not"], reference["remedy"]) == (True, None, None)
    assert "cpu" in reference["devices"]
    for state in found["backends"].values():
        assert state["works"] or (state["why_not"] and state["remedy"])


def test_text_says_why_a_backend_does_not_work_and_what_helps(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "load", backend(lambda: "no compiler was found"))
    monkeypatch.setattr(machine, "compilers", lambda: {"g++": None, "ninja": None})
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "native        does not work: no compiler was found" in text
    assert "what would help: install a C++ compiler (g++ or clang++), ninja (pip install ninja)" in text
    assert f"torch         {torch.__version__}" in text


@pytest.mark.parametrize(
    ("devices", "line"),
    [
        ({"native": ["cpu"], "reference": ["cpu"]}, "on the CPU with the native backend"),
        ({"reference": ["cpu"]}, "on the CPU with the reference backend (plain torch, slower)"),
        (
            {"native": ["cpu"], "triton": ["cuda"], "reference": ["cpu", "cuda"]},
            "on the GPU with the triton backend, on the CPU with the native backend",
        ),
    ],
)
def test_the_last_line_says_whether_training_works_with_which_backend_where(monkeypatch, capsys, devices, line):
    def diagnosed(name, compilers, gpu):
        here = devices.get(name, [])
        return {"works": bool(here), "devices": here, "why_not": "x", "why_not_on_gpu": None, "remedy": None}

    monkeypatch.setattr(doctor, "diagnose", diagnosed)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith(f"\n\nTraining works here: {line}.\n")
    devices.clear()
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("\n\nTraining does not work here: no backend works.\n")


GPU = {"name": "a GPU", "capability": "9.0", "memory_gib": 80.0}


def test_a_backend_that_is_wrong_on_a_gpu_works_on_the_cpu_alone(monkeypatch, capsys):
    wrong = "its self-check on cuda failed: swap_ (float32) is off by 1, 4e+06 times what rounding explains"
    monkeypatch.setattr(machine, "gpus", lambda: [GPU])
    monkeypatch.setattr(dispatch, "missing", lambda name, kind, dtypes: None)
    monkeypatch.setattr(dispatch, "wrong", lambda name, kind, dtypes: wrong if name == "native" else None)
    monkeypatch.setattr(dispatch, "load", backend(lambda: None))
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"native        works on cpu\n                not on cuda: {wrong}\n" in text
    assert text.endswith("on the GPU with the triton backend, on the CPU with the native backend.\n")


def test_a_gpu_that_cannot_be_used_is_not_where_training_works(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [{**GPU, "name": "not usable: old driver", "capability": None}])
    assert set(doctor.examine()["training"]) == {"cpu"}


def test_it_tells_about_process_groups(monkeypatch, capsys):
    found = doctor.examine()["processes"]
    assert "gloo" in found["process groups"]
    assert found["fully_shard"] == "works"
    assert found["torchrun"] is None
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "3"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert doctor.examine()["processes"]["torchrun"] == "rank 3 of 8"
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert cli.main(["doctor"]) == 0
    assert "several processes\n  process groups none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reason", "why_not", "helps"),
    [
        ("switched off by GRADALIGN_NATIVE=0; unset it", "switched off by GRADALIGN_NATIVE=0", "unset it"),
        ("no such cache: '/a; b'; set X", "no such cache: '/a; b'", "set X"),
        ("No module named 'x'", "No module named 'x'", "install ninja (pip install ninja)"),
    ],
)
def test_a_reason_that_says_what_to_do_is_the_remedy(monkeypatch, reason, why_not, helps):
    monkeypatch.setattr(dispatch, "load", backend(lambda: reason))
    state = doctor.diagnose("native", {"g++": "12"}, gpu=False)
    assert (state["works"], state["why_not"], state["remedy"]) == (False, why_not, helps)


def test_a_backend_that_breaks_is_a_finding():
    def broken():
        raise ImportError("libcudart.so.13: cannot open shared object file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "load", backend(broken))
        state = doctor.diagnose("native", {}, gpu=False)
    assert state["works"] is False
    assert state["why_not"] == "ImportError: libcudart.so.13: cannot open shared object file"


@pytest.mark.parametrize(
    ("name", "compilers", "gpu", "words"),
    [
        ("native", {"g++": "12", "ninja": None}, False, "install ninja"),
        ("native", {"g++": "12", "ninja": "1", "nvcc": None}, True, "for GPU kernels: nvcc"),
        ("native", {"g++": "12", "ninja": "1"}, False, "--no-build-isolation"),
        ("triton", {}, False, "needs a CUDA or ROCm GPU"),
        ("triton", {}, True, "pip install triton"),
        ("reference", {}, False, "torch alone"),
    ],
)
def test_the_remedy_follows_from_what_the_machine_has(name, compilers, gpu, words):
    assert words in doctor.remedy(name, compilers, gpu)


def test_where_native_kernels_cannot_be_built_no_compiler_would_help(monkeypatch):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Windows")
    assert doctor.remedy("native", {}, gpu=False) == "Linux, macOS or WSL; elsewhere reference is the choice"


def test_a_compiler_that_does_not_run_is_a_finding(monkeypatch, tmp_path):
    fake = tmp_path / "g++"
    fake.write_text("not a program")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine.compilers()
    assert "does not run" in found["g++"]
    assert found["clang++"] is None


def test_a_compiler_whose_version_is_not_utf8_is_a_finding(monkeypatch, tmp_path):
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\nprintf 'g++ \\351 1.0\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.compilers()["g++"] == "g++ \ufffd 1.0"


def test_it_needs_nothing_beside_torch():
    blocked = "import sys; sys.modules.update(dict.fromkeys(('rich', 'transformers', 'matplotlib', 'triton')))"
    script = f"{blocked}; from gradalign import cli; sys.exit(cli.main(['doctor']))"
    done = fresh_python("-c", script)
    assert done.returncode == 0, done.stderr  # which may tell that kernels are being built
    assert "reference     works on cpu" in done.stdout


def backend(why_unavailable):
    return lambda name: types.SimpleNamespace(why_unavailable=why_unavailable, supports=lambda device, dtypes: True)
