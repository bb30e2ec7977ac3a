"""`python -m benchmarks` from its options to its files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from support.fresh_process import fresh_python
from support.rows import HEADLINE, result, row, split

from benchmarks import ROOT, provenance, record
from benchmarks.__main__ import main
from benchmarks.steps import commands, runner, table
from benchmarks.steps.suites import Suite
from benchmarks.steps.workloads import Workload
from gradalign.cli import places

WORKLOAD = Workload("mlp", 4, 2, 1000)
RESULTS = ROOT / "benchmarks" / "results"


def toy():
    suite = Suite("toy", WORKLOAD, 1.0, "cpu")
    suite.add(WORKLOAD, ("plain", "split m=k/4"), seconds=0.01, limit=60)
    return suite


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setitem(commands.SUITES, "quick", toy)
    measured = {"plain": row(workload=WORKLOAD), "split m=k/4": split(workload=WORKLOAD)}

    def answer(request, limit):
        kept = ("workload", "method", "date", "device", "machine", "versions", "commit", "seed")
        return {name: value for name, value in measured[request["method"]].items() if name not in kept}

    monkeypatch.setattr(runner, "in_process", answer)
    return lambda *options: main(["--out", str(tmp_path / "out"), *options])


def test_rows_json_markdown_and_figures_are_written(bench, tmp_path, capsys):
    assert bench("--quick") == 0
    out = tmp_path / "out"
    assert len((out / "toy.jsonl").read_text().splitlines()) == 2
    written = json.loads((out / "toy.json").read_text())
    assert (written["suite"], written["headline"], written["complete"], written["left"]) == (
        "toy",
        WORKLOAD.name,
        True,
        [],
    )
    assert [r["method"] for r in written["rows"]] == ["plain", "split m=k/4"]
    text = (out / "toy.md").read_text()
    assert "| split m=k/4 |" in text
    assert "## Where gradalign is slower or larger" in text
    assert "## Where this was measured" in text
    assert len(list(out.glob("*.svg"))) == len(list(out.glob("*.png"))) == 4
    assert "going on" not in capsys.readouterr().out
    bench("--quick")
    assert "going on: 2 of 2 rows" in capsys.readouterr().out


def test_fresh_forgets_the_rows(bench, tmp_path, capsys):
    bench("--no-figures")
    bench("--no-figures", "--fresh")
    assert "going on" not in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.png"))


def test_report_draws_a_result_again(bench, tmp_path, capsys):
    path = tmp_path / "minilm.json"
    path.write_text(json.dumps(result(row(), split())))
    assert bench("--report", str(path)) == 0
    assert (tmp_path / "out" / "minilm-cost.png").exists()
    assert "minilm.md, minilm-cost.png" in capsys.readouterr().out  # and no JSON, which is there


@pytest.mark.parametrize(("ratio", "code"), [(1.25, 0), (1.6, 1)])
def test_compare_ends_with_1_where_something_became_worse(bench, tmp_path, capsys, ratio, code):
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, measured in zip(paths, (split(), split(ratio=ratio)), strict=True):
        path.write_text(json.dumps(result(row(), measured)))
    assert main(["--compare", *map(str, paths)]) == code
    assert ("worse" in capsys.readouterr().out) == bool(code)


def test_compare_says_which_rows_only_one_has(tmp_path, capsys):
    for name, rows in (("a", [row(), split(), row("prefix")]), ("b", [row(), row("momentum")]), ("empty", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(*rows)))
    assert main(["--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    text = capsys.readouterr().out
    assert f"2 rows only in A: {HEADLINE.name}: split m=k/4; {HEADLINE.name}: prefix." in text
    assert f"1 row only in B: {HEADLINE.name}: momentum." in text
    for other in ("a", "empty"):
        assert main(["--compare", str(tmp_path / f"{other}.json"), str(tmp_path / "empty.json")]) == 2
        assert "--compare: expected rows that both have; got" in capsys.readouterr().err


ROWS = result(row(), split())["rows"]
OTHERS = {
    "none": None,
    "cut short": "{",
    "a list": "[]",
    "no rows": '{"rows": 3}',
    "another script's": '{"seed": 0, "rows": [{"op": "perturb_", "method": "native"}]}',
    "another script's rows": json.dumps(result({"op": "perturb_"})),
    "rows of numbers": json.dumps(result(1, 2)),
    "a workload that is a name": json.dumps(result({**ROWS[0], "workload": "mlp"})),
    "a row without its ratio": json.dumps(result({k: v for k, v in ROWS[0].items() if k != "ratio"})),
    "not text": b"\xff\xfe",
}


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(bench, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "in_process", interrupt)
    assert bench("--quick") == 130
    assert capsys.readouterr().err == "benchmarks: interrupted; the same command goes on\n"


def run_from_root(*command):
    return fresh_python(*command, cwd=ROOT)


def test_it_runs_from_the_root_of_a_checkout():
    path = str(RESULTS / "cpu.json")
    done = run_from_root("-m", "benchmarks", "--compare", path, path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("0 beyond it.\n")


def test_an_error_is_one_line():
    done = run_from_root("-m", "benchmarks", "--compare", "A", "B")
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks: expected a result of the benchmarks as JSON; got A: ")
    assert done.stderr.count("\n") == 1


def test_in_the_root_the_folder_of_kernels_is_no_package():
    found = "print(importlib.util.find_spec('kernels') is not None)"
    code = f"import importlib.util; {found}; import benchmarks; {found}"
    assert run_from_root("-c", code).stdout == "True\nFalse\n"


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_what_is_no_result_is_said(bench, tmp_path, capsys, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for argv in (["--report", str(path), "--out", str(tmp_path / "out")], ["--compare", str(path), str(path)]):
        assert main(argv) == 2
        assert "expected a result of the benchmarks as JSON; got " in capsys.readouterr().err


def test_what_a_result_of_another_script_lacks_is_named(capsys):
    assert main(["--compare", *[str(RESULTS / "ops-cpu.json")] * 2]) == 2
    assert "ops-cpu.json without model, k, size in row 1" in capsys.readouterr().err


def test_the_results_of_the_repository_are_results():
    assert len(record.read_result(RESULTS / "cpu.json", table.FIELDS)["rows"]) > 100


def test_only_what_there_is_can_be_measured(bench, tmp_path, capsys):
    assert bench("--only", "nothinglikethis") == 2
    error = capsys.readouterr().err
    assert "--only: expected a part of a workload or method of the suite toy; got 'nothinglikethis'" in error
    assert all(name in error for name in (WORKLOAD.name, "plain", "split m=k/4"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--compare", "A", "B", "--out", "x"], "--out: expected only with a suite or --report; got --compare"),
        (["--compare", "A", "B", "--no-figures"], "--no-figures: expected only with a suite or --report"),
        (["--report", "A", "--seed", "0", "--only", "x"], "--only, --seed: expected only with a suite; got --report"),
        (["--report", "A", "--fresh"], "--fresh: expected only with a suite; got --report"),
    ],
)
def test_options_that_would_do_nothing_are_refused(argv, message, capsys):
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_rows_are_forgotten_or_measured_again_where_they_failed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--fresh", "--retry"])
    assert "argument --retry: not allowed with argument --fresh" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_said(bench, capsys):
    assert bench("--device", "nothing") == 2
    assert "--device: expected one that PyTorch can use here, such as cpu; got 'nothing'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said(bench, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    (tmp_path / "a.json").write_text(json.dumps(result(row(), split())))
    for argv in ([], ["--report", str(tmp_path / "a.json")]):
        assert bench("--no-figures", *argv) == 2
        assert "--out: expected a directory that can be written" in capsys.readouterr().err


def test_without_matplotlib_the_message_comes_before_any_time_is_spent(bench, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench("--quick") == 2
    assert "expected matplotlib for the figures; pip install matplotlib" in capsys.readouterr().err


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance.gradalign, "__file__", str(tmp_path / "gradalign" / "__init__.py"))
    assert provenance.commit() is None


def test_a_seed_that_torch_cannot_hold_is_refused_in_words(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--seed", str(10**23)])
    assert stop.value.code == 2
    assert "--seed: expected an integer of at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"), [("toy.md", ["--no-figures"]), ("toy-cost.png", []), ("toy.json", ["--no-figures"])]
)
def test_results_are_renamed_when_they_are_whole(bench, tmp_path, monkeypatch, name, options):
    assert bench("--quick", *options) == 0
    out = tmp_path / "out"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    original = places.os.replace

    def interrupted(part, path):
        if Path(path).name == name:
            raise KeyboardInterrupt
        original(part, path)

    monkeypatch.setattr(places.os, "replace", interrupted)
    assert bench("--quick", *options) == 130
    assert {path.name for path in out.iterdir()} == set(before)
    assert (out / name).read_bytes() == before[name]
