"""What of `make gpu` needs no GPU: arguments, stages, targets, the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest
from support.cuda.cuda_backends import cuda_backend
from support.rows import kernel_row

from benchmarks import ROOT
from benchmarks.__main__ import parser
from benchmarks.gpu import driver, report, summary
from benchmarks.kernels.step_names import CLIP_STEP, WITH_UPDATE
from benchmarks.steps.suites import SUITES


def test_targets_say_which_goals_are_met():
    rows = [
        kernel_row("one tensor of 64M", "perturb_", "native", 10, 0.93),
        kernel_row("BERT-large", "perturb_", "native", 10, 0.89, "bfloat16"),
        kernel_row("BERT-large", WITH_UPDATE, "native", 10, 0.95),
        kernel_row("1,000 tensors", CLIP_STEP, "native", 10, 0.5),
        kernel_row("1,000 tensors", CLIP_STEP, "torch fused", 16, 0.5),
    ]
    goals = summary.targets(rows)
    assert len(goals) == 60
    assert not any(t.met for t in goals if t.measured is None)
    found = {t.what: (t.measured, t.met) for t in goals if t.measured is not None}
    assert summary.targets([]) == []
    assert found == {
        "perturb_ on one tensor of 64M, float32: fraction of y += a x": (0.93, True),
        "perturb_ on BERT-large, bfloat16: fraction of y += a x": (0.89, False),
        "perturb, restore, AdamW on BERT-large: times its floor": (pytest.approx(1.0526, abs=1e-3), True),
        "clip + AdamW + clear on 1,000 tensors: times faster than torch fused": (1.6, True),
    }


def test_the_benchmark_joins_the_rows_of_both_commands(tmp_path, monkeypatch):

    def execute(command, seconds):
        name = command[2].rpartition(".")[2]
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [name]}))
        return int(name == "optimizers" and seconds < 3), f"{name} ran\n"

    monkeypatch.setattr(report, "execute", execute)
    assert report.benchmark(tmp_path, quick=True)(10.0) == (True, "ops ran\noptimizers ran\n")
    assert json.loads((tmp_path / "measured.json").read_text()) == ["ops", "optimizers"]
    assert report.benchmark(tmp_path, quick=True)(2.0)[0] is False


def test_the_report_of_a_run(tmp_path):
    run = report.Run(tmp_path, report.time.monotonic() + 100, ("tests",))
    assert run.stage("build", lambda _: (True, "first\nlast line\n")).status == "passed"
    assert run.stage("memcheck", lambda _: (False, "ERROR SUMMARY: 1 error")).status == "failed"
    assert run.stage("tests", lambda _: (True, "")).summary == "asked for"
    run.deadline = report.time.monotonic()
    assert run.stage("collect", lambda _: (True, "")).summary == "no time left"
    rows = [kernel_row("one tensor of 64M", "perturb_", "native", 10, 0.93)]
    (tmp_path / "measured.json").write_text(json.dumps(rows))
    report.report(run, {"python": "3.12"})
    text = re.sub(" +", " ", (tmp_path / "report.md").read_text())
    assert "| build | passed | 0 | last line |" in text
    assert "| memcheck | failed | 0 | ERROR SUMMARY: 1 error |" in text
    assert "- measured on a CPU, 2 threads, torch 2.13.0, 2026-01-02, commit abc" in text
    assert "| one tensor of 64M | float32 | perturb_ | native | 10.0 | 50 | 0.930 |" in text
    assert "| perturb_ on one tensor of 64M, float32: fraction of y += a x | 0.930 | >= 0.92 | yes |" in text
    assert json.loads((tmp_path / "report.json").read_text())["targets"][0]["goal"] == 0.92
    assert (tmp_path / "report.png").exists() == summary.draw(rows, tmp_path / "again.png")


def test_a_stage_leaves_a_reserve_for_later_ones(tmp_path):
    run = report.Run(tmp_path, report.time.monotonic() + 50, ())
    seconds = []
    run.stage("suite", lambda left: (bool(seconds.append(left)), ""), reserve=20)
    assert seconds[0] == pytest.approx(30, abs=1)
    assert run.stage("suite", lambda _: (True, ""), reserve=46).summary == "no time left"


@pytest.mark.parametrize(("statuses", "passed"), [(["ok", "ok"], True), (["ok", "failed"], False), ([], False)])
def test_the_suite_passes_where_every_row_was_measured(tmp_path, monkeypatch, statuses, passed):
    asked = []

    def execute(command, seconds):
        asked.append(command)
        (tmp_path / "suite").mkdir()
        rows = [{"status": status} for status in statuses]
        (tmp_path / "suite" / "gpu.json").write_text(json.dumps({"rows": rows}))
        return 0, "a table\n"

    monkeypatch.setattr(report, "execute", execute)
    assert report.suite(tmp_path)(75.0) == (passed, "a table\n")
    options = parser().parse_args(asked[0][3:])
    assert (options.suite, options.minutes, options.out) == ("gpu", 1.0, tmp_path / "suite")
    assert {m.workload.model for m in SUITES["gpu"]().matching(options.only)} == {"mlp"}  # needs no texts


def test_the_tests_for_a_gpu_are_found(tmp_path, monkeypatch):
    of_the_conftest = {f"tests/cuda/test_cuda_{name}.py" for name in ("ops", "steps")}
    assert of_the_conftest | {"tests/kernels/test_on_gpu.py", "tests/optim/test_no_sync.py"} <= set(report.gpu_tests())
    (tmp_path / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "tests" / "deep" / "test_a.py").write_text("@pytest.mark.gpu\ndef test_b(): ...\n")
    (tmp_path / "tests" / "test_c.py").write_text("def test_d(): ...\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.gpu_tests() == ["tests/deep/test_a.py"]
    (tmp_path / "tests" / "conftest.py").write_text('GPU = pytest.param("gpu", marks=pytest.mark.gpu)\n')
    assert report.gpu_tests() == ["tests/deep/test_a.py", "tests/test_c.py"]


@pytest.mark.parametrize("module", ["benchmarks.kernels.ops", "benchmarks.kernels.optimizers", "benchmarks"])
def test_a_stage_finds_its_module_beside_the_package_of_links(module, tmp_path, monkeypatch):
    report.make_package(tmp_path / "there")
    monkeypatch.setattr(report, "PACKAGE", tmp_path / "there")
    status, text = report.execute([sys.executable, "-m", module, "--help"], 60)
    assert status == 0, text
    assert "--device" in text


def test_the_report_itself_needs_neither_torch_nor_gradalign():
    blocked = "import sys; sys.modules.update(torch=None, gradalign=None); sys.path.insert(0, sys.argv[1]); "
    command = [sys.executable, "-I", "-c", blocked + "import benchmarks.gpu.report", str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_stage_that_takes_too_long_is_stopped_with_its_children(tmp_path):
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    status, text = report.execute([sys.executable, "-c", parent], 0.7)
    assert status == 124
    assert text == "begun\n\nstopped after 1 s"
    time.sleep(2.2)
    assert not (tmp_path / "late").exists()


def test_no_time_for_a_stage_is_no_success(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "device_count", lambda: 1)
    monkeypatch.setattr(report, "make_package", lambda _: None)
    argv = [
        "--out",
        str(tmp_path),
        "--minutes",
        "0.35",
        "--skip",
        "build",
        "tests",
        "benchmark",
        "suite",
        "memcheck",
        "racecheck",
    ]
    assert report.main(argv) == 1  # 21 seconds, 20 of them kept for the report: none for initcheck


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "device_count", lambda: 0)
    monkeypatch.setattr(report, "make_package", lambda _: None)
    assert report.main(["--out", str(tmp_path), "--skip", "build", "collect"]) == report.NO_DEVICE
    assert "no GPU that torch can use" in capsys.readouterr().err
    assert "Nothing was measured." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("argv", "words"), [(["--minutes", "0"], "expected more than 0"), (["--skip", "x"], "invalid choice")]
)
def test_bad_arguments(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_the_package_by_links(tmp_path):
    report.make_package(tmp_path / "there")
    package = tmp_path / "there" / "gradalign"
    assert (package / "csrc" / "bindings.cpp").is_file()
    assert (package / "kernels" / "__init__.py").is_file()
    assert (package / "ops.py").is_file()
    assert (tmp_path / "there" / "benchmarks" / "__main__.py").is_file()


def test_the_driver_runs_every_op(monkeypatch, capsys):
    monkeypatch.setattr(driver, "native", cuda_backend("emulated"))
    monkeypatch.setattr(sys, "argv", ["driver.py", "cpu"])
    monkeypatch.setattr(driver, "SIZES", (3, 1030))
    assert driver.main() == 0
    assert capsys.readouterr().out == "188 ops ran\n"
