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
