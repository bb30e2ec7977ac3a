"""What of `make gpu` needs no GPU: arguments, stages, targets, the report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cuda.cuda_backends import cuda_backend
from support.measured_rows import measured

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(scripts):
    return scripts(BENCHMARKS)


def test_targets_say_which_goals_are_met(load):
    summary = load("gpu_summary")
    rows = [
        measured("one tensor of 64M", "perturb_", "native", 10, 0.93),
        measured("BERT-large", "perturb_", "native", 10, 0.89, "bfloat16"),
        measured("BERT-large", summary.WITH_UPDATE, "native", 10, 0.95),
        measured("1,000 tensors", summary.CLIP_STEP, "native", 10, 0.5),
        measured("1,000 tensors", summary.CLIP_STEP, "torch fused", 16, 0.5),
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


def test_the_benchmark_joins_the_figures_of_both_scripts(load, tmp_path, monkeypatch):
    report = load("gpu_report")

    def execute(command, seconds):
        name = Path(command[1]).stem
        Path(command[command.index("--json") + 1]).write_text(json.dumps({"device": "cuda", "rows": [name]}))
        return int(name == "bench_optim" and seconds < 3), f"{name} ran\n"

    monkeypatch.setattr(report, "execute", execute)
    assert report.benchmark(tmp_path, quick=True)(10.0) == (True, "bench_kernels ran\nbench_optim ran\n")
    found = json.loads((tmp_path / "measured.json").read_text())
    assert found == {"machine": {"device": "cuda"}, "rows": ["bench_kernels", "bench_optim"]}
    assert report.benchmark(tmp_path, quick=True)(2.0)[0] is False


def test_the_report_of_a_run(load, tmp_path):
    report, summary = load("gpu_report"), load("gpu_summary")
    run = report.Run(tmp_path, report.time.monotonic() + 100, ("tests",))
    assert run.stage("build", lambda _: (True, "first\nlast line\n")).status == "passed"
    assert run.stage("memcheck", lambda _: (False, "ERROR SUMMARY: 1 error")).status == "failed"
    assert run.stage("tests", lambda _: (True, "")).summary == "asked for"
    run.deadline = report.time.monotonic()
    assert run.stage("collect", lambda _: (True, "")).summary == "no time left"
    rows = [measured("one tensor of 64M", "perturb_", "native", 10, 0.93)]
    (tmp_path / "measured.json").write_text(json.dumps({"machine": {"gpu": "a GPU"}, "rows": rows}))
    report.report(run, {"python": "3.12"})
    text = (tmp_path / "report.md").read_text()
    assert "| build | passed | 0 | last line |" in text
    assert "| memcheck | failed | 0 | ERROR SUMMARY: 1 error |" in text
    assert "- gpu: a GPU" in text
    assert "| perturb_ on one tensor of 64M, float32: fraction of y += a x | 0.930 | >= 0.92 | yes |" in text
    assert json.loads((tmp_path / "report.json").read_text())["targets"][0]["goal"] == 0.92
    assert (tmp_path / "report.png").exists() == summary.draw(rows, tmp_path / "again.png")


def test_every_gpu_test_is_where_the_report_looks(load):
    roots = [BENCHMARKS.parent / name for name in load("gpu_report").GPU_TESTS]
    marked = [path for path in (BENCHMARKS.parent / "tests").rglob("*.py") if "mark.gpu" in path.read_text()]
    assert len(marked) > 4
    assert all(any(path == root or root in path.parents for root in roots) for path in marked)


def test_a_script_finds_what_it_imports_on_the_path_of_the_stages(load):
    status, text = load("gpu_report").execute([sys.executable, "benchmarks/bench_optim.py", "--help"], 60)
    assert status == 0, text
    assert "--device" in text


def test_the_report_itself_needs_neither_torch_nor_gradalign():
    blocked = "import sys; sys.modules.update(torch=None, gradalign=None); sys.path.insert(0, sys.argv[1]); "
    command = [sys.executable, "-I", "-c", blocked + "import gpu_report", str(BENCHMARKS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_stage_that_takes_too_long_is_stopped_with_its_children(load, tmp_path):
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    status, text = load("gpu_report").execute([sys.executable, "-c", parent], 0.7)
    assert status == 124
    assert text == "begun\n\nstopped after 1 s"
    time.sleep(2.2)
    assert not (tmp_path / "late").exists()


def test_no_time_for_a_stage_is_no_success(load, tmp_path, monkeypatch):
    report = load("gpu_report")
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
        "memcheck",
        "racecheck",
    ]
    assert report.main(argv) == 1  # 21 seconds, 20 of them kept for the report: none for initcheck


def test_without_a_gpu_it_says_so(load, tmp_path, monkeypatch, capsys):
    report = load("gpu_report")
    monkeypatch.setattr(report, "device_count", lambda: 0)
    monkeypatch.setattr(report, "make_package", lambda _: None)
    assert report.main(["--out", str(tmp_path), "--skip", "build", "collect"]) == report.NO_DEVICE
    assert "no GPU that torch can use" in capsys.readouterr().err
    assert "Nothing was measured." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("argv", "words"), [(["--minutes", "0"], "expected more than 0"), (["--skip", "x"], "invalid choice")]
)
def test_bad_arguments(load, argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        load("gpu_report").main(argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_the_package_by_links(load, tmp_path):
    load("gpu_report").make_package(tmp_path / "there")
    package = tmp_path / "there" / "gradalign"
    assert (package / "csrc" / "bindings.cpp").is_file()
    assert (package / "kernels" / "__init__.py").is_file()
    assert (package / "ops.py").is_file()


def test_the_driver_runs_every_op(load, monkeypatch, capsys):
    driver = load("gpu_driver")
    monkeypatch.setattr(driver, "native", cuda_backend("emulated"))
    monkeypatch.setattr(sys, "argv", ["gpu_driver.py", "cpu"])
    monkeypatch.setattr(driver, "SIZES", (3, 1030))
    assert driver.main() == 0
    assert capsys.readouterr().out == "188 ops ran\n"
