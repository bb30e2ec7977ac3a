from __future__ import annotations

import json

import pytest
from support.rows import row, split

from benchmarks import record
from benchmarks.record import Fields


def test_a_result_is_a_line_for_each_row_and_read_back(tmp_path):
    path = tmp_path / "a.json"
    written = record.result("toy", "a workload", [row(), split()], [("w", "m")])
    record.write_result(path, written)
    assert len(path.read_text().splitlines()) == 4
    assert record.read_result(path, Fields(("name",), ("ratio",))) == json.loads(json.dumps(written))
    assert not written["complete"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_result_without_rows_is_one_too(tmp_path):
    path = tmp_path / "a.json"
    record.write_result(path, record.result("toy", None, []))
    assert record.read_result(path, Fields((), ())) == record.result("toy", None, [])


def test_what_cannot_be_written_leaves_the_old_result(tmp_path):
    path = tmp_path / "a.json"
    record.write_result(path, record.result("toy", None, [row()]))
    before = path.read_text()
    with pytest.raises(TypeError, match="not JSON serializable"):
        record.write_result(path, record.result("toy", None, [row(), {"method": object()}]))
    assert path.read_text() == before


def test_a_row_after_a_cut_line_is_kept(tmp_path):
    path = tmp_path / "toy.jsonl"
    record.append_row(path, row())
    whole = path.read_text()
    path.write_text(whole + whole[:40])  # as a power cut leaves it
    record.append_row(path, split())
    assert [found["method"] for found in record.read_rows(path, "cpu")] == [row()["method"], split()["method"]]
    record.append_row(path, row("prefix"))
    assert len(record.read_rows(path, "cpu")) == 3


def test_an_appended_row_is_on_the_disk(tmp_path, monkeypatch):
    sizes = []
    path = tmp_path / "toy.jsonl"
    monkeypatch.setattr(record.os, "fsync", lambda descriptor: sizes.append(path.stat().st_size))
    record.append_row(path, row())
    assert sizes == [path.stat().st_size]


@pytest.mark.parametrize("line", ["null", "3", "[]", "{}", '{"device": "cpu"}', "\udcff", '"'])
def test_lines_that_are_no_rows_are_left_out(tmp_path, line):
    path = tmp_path / "toy.jsonl"
    path.write_bytes(f"{line}\n".encode(errors="surrogateescape"))
    record.append_row(path, row())
    assert len(record.read_rows(path, "cpu")) == 1


def test_a_row_whose_workload_is_of_an_earlier_format_is_left_out(tmp_path):
    path = tmp_path / "toy.jsonl"
    for workload in ("mlp", {"model": "mlp"}):
        record.append_row(path, {**row(), "workload": workload})
    assert record.read_rows(path, "cpu") == []
