"""What of `make gpu` needs no GPU: arguments, stages, targets, the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from support.rows import kernel_row

from benchmarks import ROOT
from benchmarks.__main__ import parser
from benchmarks.gpu import process, report, summary
from benchmarks.gpu.schedule import LEAST, SHARES, WITHOUT_GPU, Run
from benchmarks.kernels.step_names import CLIP_STEP, WITH_UPDATE
from benchmarks.steps.runner import GRACE
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


def test_rows_that_were_measured_outlive_the_other_half_of_the_benchmark(tmp_path, monkeypatch):

    def execute(command, seconds):
        name = command[2].rpartition(".")[2]
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": [name]}) if name == "ops" else '{"rows": [')
        return 0, ""

    monkeypatch.setattr(report, "execute", execute)
    with pytest.raises(json.JSONDecodeError):
        report.benchmark(tmp_path, quick=True)(10.0)
    assert json.loads((tmp_path / "measured.json").read_text()) == ["ops"]


def test_the_report_of_a_run(tmp_path):
    run = Run(tmp_path, 10_000, ("tests",), WITHOUT_GPU | SHARES)
    run.stage("build", lambda _: (True, "first\nlast line\n"))
    run.stage("memcheck", lambda _: (False, "ERROR SUMMARY: 1 error"))
    rows = [kernel_row("one tensor of 64M", "perturb_", "native", 10, 0.93)]
    (tmp_path / "measured.json").write_text(json.dumps(rows))
    (tmp_path / "suite").mkdir()
    steps = [
        {"workload": {"name": "mlp-1e8"}, "method": "split", "status": "ok", "ratio": 1.234},
        {"workload": {"name": "mlp-1e8"}, "method": "prefix", "status": "failed", "reason": "out of memory"},
    ]
    lines = "".join(f"{json.dumps(row)}\n" for row in steps)
    (tmp_path / "suite" / "gpu.jsonl").write_text(lines + '{"workload": {"na')
    report.report(run, {"python": "3.12"})
    text = re.sub(" +", " ", (tmp_path / "report.md").read_text())
    assert "| build | passed | 0 | last line |" in text
    assert "| memcheck | failed | 0 | ERROR SUMMARY: 1 error |" in text
    assert "- measured on a CPU, 2 threads, torch 2.13.0, 2026-01-02, commit abc" in text
    assert "| one tensor of 64M | float32 | perturb_ | native | 10.0 | 50 | 0.930 |" in text
    assert "| perturb_ on one tensor of 64M, float32: fraction of y += a x | 0.930 | >= 0.92 | yes |" in text
    assert "| mlp-1e8 | split | 1.23 |" in text
    assert "| mlp-1e8 | prefix | out of memory |" in text
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["targets"][0]["goal"] == 0.92
    assert found["suite"] == steps
    assert (tmp_path / "report.png").exists() == summary.draw(rows, tmp_path / "again.png")


def test_rows_that_cannot_be_shown_leave_the_stages_in_the_report(tmp_path):
    run = Run(tmp_path, 10_000)
    run.stage("build", lambda _: (True, "built"))
    (tmp_path / "measured.json").write_text('[{"method": "native"')
    report.report(run, {})
    assert [stage["name"] for stage in json.loads((tmp_path / "report.json").read_text())["stages"]] == ["build"]
    text = (tmp_path / "report.md").read_text()
    assert "built" in text
    assert "Not all of it can be shown: JSONDecodeError" in text


def test_the_report_is_written_after_every_stage(tmp_path, monkeypatch):
    seen = []

    def stages_so_far(_):
        path = tmp_path / "report.json"
        seen.append([s["name"] for s in json.loads(path.read_text())["stages"]] if path.exists() else [])
        if len(seen) == 2:
            raise UnicodeDecodeError("utf-8", b"\xe2", 0, 1, "unexpected end of data")
        return True, ""

    for name in ("build", "collect"):
        monkeypatch.setattr(*{"build": (report, name), "collect": (report.device_tests, name)}[name], stages_so_far)
    monkeypatch.setattr(report, "device_count", lambda: 0)
    monkeypatch.setattr(report, "make_package", lambda _: None)
    assert report.main(["--out", str(tmp_path)]) == 1
    assert seen == [[], ["build"]]
    stages = json.loads((tmp_path / "report.json").read_text())["stages"]
    assert [s["status"] for s in stages] == ["passed", "failed"]
    assert "UnicodeDecodeError" in stages[1]["summary"]
    assert "stages_so_far" in (tmp_path / "collect.log").read_text()


@pytest.mark.parametrize(
    ("statuses", "exit_status", "said", "passed", "last"),
    [
        (["ok", "ok"], 0, "a table", True, "2 rows measured"),
        (["ok", "failed"], 0, "a table", False, "2 rows measured"),
        ([], 0, "a table", False, "0 rows measured"),
        (["ok"], 0, "time is up: 4 rows left", True, "1 rows measured, not all rows"),
        (["ok"], 124, "stopped after 75 s", False, "1 rows measured, not all rows"),
    ],
)
def test_the_suite_passes_where_every_row_was_measured(
    tmp_path, monkeypatch, statuses, exit_status, said, passed, last
):
    asked = []

    def execute(command, seconds):
        asked.append(command)
        (tmp_path / "suite").mkdir()
        (tmp_path / "suite" / "gpu.jsonl").write_text("".join(f'{{"status": "{status}"}}\n' for status in statuses))
        return exit_status, f"{said}\n"

    monkeypatch.setattr(report, "execute", execute)
    assert report.suite(tmp_path)(75.0) == (passed, f"{said}\n\n{last}")
    options = parser().parse_args(asked[0][3:])
    assert (options.suite, options.minutes, options.out) == ("gpu", 0.5, tmp_path / "suite")
    assert {m.workload.model for m in SUITES["gpu"]().matching(options.only)} == {"mlp"}  # needs no texts


def test_the_last_row_of_the_suite_ends_before_the_suite_is_stopped(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(report, "execute", lambda command, seconds: (asked.append(command), (1, ""))[1])
    for seconds in (LEAST["suite"] + 5, float(SHARES["suite"]), 200.0):
        report.suite(tmp_path)(seconds)
        begins = 60 * parser().parse_args(asked[-1][3:]).minutes
        assert begins >= 10
        assert begins + GRACE + process.GRACE <= seconds


@pytest.mark.parametrize("module", ["benchmarks.kernels.ops", "benchmarks.kernels.optimizers", "benchmarks"])
def test_a_stage_finds_its_module_beside_the_package_of_links(module, tmp_path, monkeypatch):
    report.make_package(tmp_path / "there")
    monkeypatch.setattr(process, "PACKAGE", tmp_path / "there")
    status, text = process.execute([sys.executable, "-m", module, "--help"], 60)
    assert status == 0, text
    assert "--device" in text


def test_the_report_itself_needs_neither_torch_nor_gradalign():
    blocked = "import sys; sys.modules.update(torch=None, gradalign=None); sys.path.insert(0, sys.argv[1]); "
    command = [sys.executable, "-I", "-c", blocked + "import benchmarks.gpu.report", str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


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
