"""`gradalign bench` from its options to its files."""

from __future__ import annotations

import importlib.util
import json

import pytest
from rows import result, row, split

from gradalign import cli
from gradalign.cli.bench import commands, record, runner
from gradalign.cli.bench.suites import Suite
from gradalign.cli.bench.works import Work

WORK = Work("mlp", 4, 2, 1000)


def toy():
    suite = Suite("toy", WORK, 1.0, "cpu")
    suite.add(WORK, ("plain", "split m=k/4"), seconds=0.01, limit=60)
    return suite


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setitem(commands.SUITES, "quick", toy)
    measured = {"plain": row(work=WORK), "split m=k/4": split(work=WORK)}

    def answer(request, limit):
        kept = ("work", "method", "date", "device", "machine", "versions", "commit", "seed")
        return {name: value for name, value in measured[request["method"]].items() if name not in kept}

    monkeypatch.setattr(runner, "in_process", answer)
    return lambda *options: cli.main(["bench", "--out", str(tmp_path / "out"), *options])


def test_rows_json_markdown_and_figures_are_written(bench, tmp_path, capsys):
    assert bench("--quick") == 0
    out = tmp_path / "out"
    assert len((out / "toy.jsonl").read_text().splitlines()) == 2
    written = json.loads((out / "toy.json").read_text())
    assert (written["suite"], written["headline"], written["complete"], written["left"]) == ("toy", WORK.name, True, [])
    assert [r["method"] for r in written["rows"]] == ["plain", "split m=k/4"]
    text = (out / "toy.md").read_text()
    assert "| split m=k/4 |" in text
    assert "## Where gradalign loses" in text
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


def test_report_draws_a_result_again(bench, tmp_path):
    path = tmp_path / "minilm.json"
    path.write_text(json.dumps(result(row(), split())))
    assert bench("--report", str(path)) == 0
    assert (tmp_path / "out" / "minilm-cost.png").exists()


@pytest.mark.parametrize(("ratio", "code"), [(1.25, 0), (1.6, 1)])
def test_compare_ends_with_1_where_something_became_worse(bench, tmp_path, capsys, ratio, code):
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, measured in zip(paths, (split(), split(ratio=ratio)), strict=True):
        path.write_text(json.dumps(result(row(), measured)))
    assert bench("--compare", *map(str, paths)) == code
    assert ("worse" in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": 3}'])
def test_what_is_no_result_is_said(bench, tmp_path, capsys, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert bench("--report", str(path), "--no-figures") == 2
    assert "expected the JSON of a result of `gradalign bench`" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_said(bench, capsys):
    assert bench("--device", "nothing") == 2
    assert "--device: expected one that PyTorch can use here; got 'nothing'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said(bench, tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert bench("--no-figures") == 2
    assert "--out: expected a directory that can be written" in capsys.readouterr().err


def test_without_matplotlib_the_message_comes_before_any_time_is_spent(bench, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench("--quick") == 2
    assert "expected matplotlib for the figures; pip install 'gradalign[bench]'" in capsys.readouterr().err


def test_outside_of_a_checkout_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(record.gradalign, "__file__", str(tmp_path / "gradalign" / "__init__.py"))
    assert record.commit() is None
