"""Rows are written as they come, whatever becomes of a measurement; the same command goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest

from benchmarks import ROOT, record
from benchmarks.steps import runner
from benchmarks.steps.child import MARK
from benchmarks.steps.runner import Request, Runner, describe, in_process, without_paths
from benchmarks.steps.suites import Suite
from benchmarks.steps.workloads import Workload

WORKLOAD = Workload("mlp", 4, 2, 1000)
OK = {"status": "ok", "reason": None, "ratio": 1.0, "ratio_quartiles": [1.0, 1.0], "rounds": 3}
FAILED = {"status": "failed", "reason": "RuntimeError: no"}


@pytest.fixture
def suite():
    suite = Suite("toy", WORKLOAD, 1.0, "cpu")
    suite.add(WORKLOAD, ("plain", "prefix", "momentum"), seconds=0.01, limit=60)
    return suite


@pytest.fixture
def measured(monkeypatch):
    """Answers instead of processes; a list of the methods that were asked for."""
    asked: list = []

    def answer(request, limit):
        asked.append(request["method"])
        return FAILED if request["method"] == "prefix" else OK

    monkeypatch.setattr(runner, "in_process", answer)
    return asked


def run(suite, path, said=None, minutes=1.0, **options):
    runner = Runner(suite, path, "cpu", 5, (said if said is not None else []).append)
    return runner.run(Request(minutes, **options))


def test_every_row_says_where_with_what_and_when(suite, measured, tmp_path):
    rows, left = run(suite, tmp_path / "toy.jsonl")
    assert (len(rows), left) == (3, [])
    for row in rows:
        assert row["workload"] == WORKLOAD.as_dict()
        assert row["machine"]["cpu"]
        assert row["machine"]["threads"] >= 1
        assert row["versions"]["torch"]
        assert (row["seed"], row["device"]) == (5, "cpu")
        assert row["date"].endswith("+00:00")
        assert "commit" in row


def test_a_failure_is_a_row_and_the_rest_is_measured(suite, measured, tmp_path):
    rows, _ = run(suite, tmp_path / "toy.jsonl", said := [])
    assert [(row["method"], row["status"]) for row in rows] == [
        ("plain", "ok"),
        ("prefix", "failed"),
        ("momentum", "ok"),
    ]
    assert said[1] == f"[2/3] {WORKLOAD.name}: prefix: RuntimeError: no"


def test_the_same_command_goes_on_after_an_interruption(suite, measured, tmp_path, monkeypatch):
    path, answer = tmp_path / "toy.jsonl", runner.in_process

    def interrupted(request, limit):
        if request["method"] == "momentum":
            raise KeyboardInterrupt
        return answer(request, limit)

    monkeypatch.setattr(runner, "in_process", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(suite, path)
    assert [row["method"] for row in record.read_rows(path, "cpu")] == ["plain", "prefix"]
    with path.open("a") as file:
        file.write('{"workload": {"na')  # as a power cut leaves it
    path.write_text(path.read_text() + "\n")
    monkeypatch.setattr(runner, "in_process", answer)
    measured.clear()
    rows, left = run(suite, path, said := [])
    assert measured == ["momentum"]
    assert (len(rows), left) == (3, [])
    assert said[0] == f"going on: 2 of 3 rows are in {path}"


def test_what_failed_is_measured_again_on_request(suite, measured, tmp_path):
    run(suite, tmp_path / "toy.jsonl")
    measured.clear()
    run(suite, tmp_path / "toy.jsonl", retry=True)
    assert measured == ["prefix"]


def test_only_measures_what_is_named(suite, measured, tmp_path):
    rows, left = run(suite, tmp_path / "toy.jsonl", only="mom")
    assert [row["method"] for row in rows] == ["momentum"]
    assert left == [(WORKLOAD.name, "plain"), (WORKLOAD.name, "prefix")]


def test_nothing_begins_after_the_bound(suite, measured, tmp_path):
    rows, left = run(suite, tmp_path / "toy.jsonl", said := [], minutes=-1)
    assert (rows, len(left), measured) == ([], 3, [])
    assert said == ["time is up: 3 rows left; the same command goes on"]


def test_rows_of_another_device_are_not_taken(suite, measured, tmp_path):
    path = tmp_path / "toy.jsonl"
    run(suite, path)
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    measured.clear()
    run(suite, path)
    assert len(measured) == 3


def test_rows_in_an_earlier_format_are_measured_again(suite, measured, tmp_path):
    path = tmp_path / "toy.jsonl"
    run(suite, path)
    path.write_text(path.read_text().replace('"workload"', '"work"'))
    measured.clear()
    run(suite, path)
    assert len(measured) == 3


def process(monkeypatch, **result):
    done = types.SimpleNamespace(**{"returncode": 0, "stdout": "", "stderr": "", **result})
    monkeypatch.setattr(runner.subprocess, "run", lambda *args, **kwargs: done)
    return in_process({}, 1.0)


def test_the_answer_is_found_among_what_a_process_prints(monkeypatch):
    found = process(monkeypatch, stdout=f"a library talks\n{MARK}{json.dumps(OK)}\nand talks\n")
    assert found["status"] == "ok"
    assert found["process_seconds"] >= 0


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"returncode": -9}, "out of memory, or ended by signal 9"),
        ({"returncode": 1, "stderr": "Traceback\nValueError: x\n"}, "exit code 1: ValueError: x"),
        ({"returncode": 3}, "exit code 3: nothing on stderr"),
    ],
)
def test_a_process_without_an_answer(monkeypatch, result, reason):
    assert process(monkeypatch, **result) == {"status": "failed", "reason": reason}


def test_a_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(runner.sys, "executable", "/bin/sleep")
    monkeypatch.setattr(runner, "json", types.SimpleNamespace(dumps=lambda request: "100"))
    real = subprocess.run
    monkeypatch.setattr(runner.subprocess, "run", lambda command, **kwargs: real(["sleep", "100"], **kwargs))
    assert in_process({}, 0.2) == {"status": "failed", "reason": "took longer than 0 s", "timed_out": True}


def test_what_the_bound_of_the_suite_cuts_short_is_left_and_no_failure(suite, monkeypatch, tmp_path):
    hanging = {"status": "failed", "reason": "took longer than 30 s", "timed_out": True}
    monkeypatch.setattr(runner, "in_process", lambda request, limit: hanging)
    rows, left = run(suite, tmp_path / "toy.jsonl", said := [], minutes=0.01)
    assert (rows, len(left)) == ([], 3)
    assert said == ["time is up: 3 rows left; the same command goes on"]


def test_what_its_own_limit_cuts_short_is_a_failure(suite, monkeypatch, tmp_path):
    hanging = {"status": "failed", "reason": "took longer than 60 s", "timed_out": True}
    monkeypatch.setattr(runner, "in_process", lambda request, limit: hanging)
    rows, left = run(suite, tmp_path / "toy.jsonl", minutes=5)
    assert ([row["status"] for row in rows], left) == (["failed"] * 3, [])


def test_reasons_name_no_folder_of_this_machine():
    assert without_paths(f"no {ROOT}/csrc/x.cpp for {sys.prefix}/bin/python") == "no csrc/x.cpp for bin/python"
    assert without_paths(None) is None


def test_a_line_says_the_ratio_or_the_reason():
    row = {"workload": WORKLOAD.as_dict(), "method": "prefix", **OK, "ratio": 1.9, "ratio_quartiles": [1.85, 1.95]}
    assert describe(row) == f"{WORKLOAD.name}: prefix: 1.90 times plain (1.85 to 1.95, 3 rounds)"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plain", "split m=k/4", "full Hessian"])
def test_a_real_process_measures_everything_from_any_folder_and_on_a_safe_path(method, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    workload = {"model": "mlp", "k": 4, "batch": 2, "size": 1000}
    request = {"workload": workload, "method": method, "device": "cpu", "threads": 1, "seed": 0, "seconds": 0.05}
    row = in_process(request, 120)
    assert row["status"] == "ok", row
    assert row["parameters"] == 1088
    assert row["rounds"] >= 3
    assert row["ratio_range"][0] <= row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]
    assert row["samples_per_second"] == pytest.approx(8 / row["seconds"])
    assert row["passes"] == {"plain": 4, "split m=k/4": 5, "full Hessian": 4 + 4 * 1088}[method]
    assert -1e6 < row["peak_bytes"] < 1e9
    assert bool(row.get("kernels")) == (method == "split m=k/4")


@pytest.mark.slow
def test_a_real_process_says_why_a_method_cannot_run():
    request = {"workload": {"model": "mlp", "k": 4, "batch": 2, "size": 1000}, "device": "cpu", "threads": 1, "seed": 0}
    row = in_process({**request, "method": "split m=k/4 @nothing", "seconds": 0.05}, 120)
    assert row["status"] == "failed"
    assert "method: expected one of" in row["reason"]
