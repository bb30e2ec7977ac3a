"""A CSV file with a row that does not fit, or that is damaged: one line that names the file and the line."""

import bz2
import gzip
import random
import re

import pytest

from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import from_csv

HEADER = "review,verdict,film\n"


def read(path, group="film"):
    return from_csv(path, "review", "verdict", group)


def refusal(path, group="film"):
    with pytest.raises(CommandError) as caught:
        read(path, group)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_row_without_its_group_is_named(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(HEADER + "Good,1,a\nBad,0\n")
    assert refusal(path) == (
        f"--group-column: expected a value of 'film' in each row; got {path}, line 3, which has 2 of the 3 columns; "
        "complete it"
    )
    assert len(read(path, None).snippets) == 2


def test_a_short_row_without_text_or_label_is_skipped(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(HEADER + "Good,1,a\nFine\nBad,0,b\n\n")
    assert [s.text for s in read(path).snippets] == ["Good", "Bad"]


@pytest.mark.parametrize("line", [2, 3])
@pytest.mark.parametrize("group", ["film", None])
def test_a_row_with_more_fields_than_columns_is_named(tmp_path, line, group):
    path = tmp_path / "texts.csv"
    rows = ["Good,1,a\n", "Bad,0,b\n"]
    rows.insert(line - 2, "Well, hello,1,a\n")
    path.write_text(HEADER + "".join(rows))
    assert refusal(path, group) == (
        f"--csv: expected 3 columns in each row, as in the first line; got {path}, line {line}, which has 4; "
        "put a text with commas in quotes"
    )


def test_a_long_first_row_does_not_hide_a_missing_column(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("review,verdict\nGood,1,a,b\nBad,0\n")
    assert "--csv: expected 2 columns" in refusal(path, None)


def test_the_line_is_that_of_the_file_where_texts_have_lines(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(HEADER + '"Good\nindeed",1,a\nBad,0,b,c,d\n')
    assert "line 4, which has 5" in refusal(path)


def test_empty_fields_at_the_end_are_no_columns(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(HEADER + "Good,1,a,,\nBad,0,b,\n")
    assert len(read(path).snippets) == 2


@pytest.mark.parametrize("damage", ["cut", "a wrong byte", "no archive"])
@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_damaged_archive_is_named(tmp_path, suffix, compress, damage):
    rng = random.Random(0)
    text = HEADER + "".join(f"{rng.random()} {rng.random()},{i % 2},f{i}\n" for i in range(20_000))
    content = bytearray(compress(text.encode()))
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "a wrong byte":
        middle = len(content) // 2
        content[middle : middle + 40] = b"\xff" * 40
    else:
        content = bytearray(text.encode())
    path = tmp_path / f"texts.csv{suffix}"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"--csv: expected a CSV file in UTF-8; got {path}, which cannot be read after line ")
    assert re.search(r"after line \d+: \S", message)


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_bytes(HEADER.encode() + b"Good,1,a\n" * 5000 + b"caf\xe9,0,b\n")
    message = refusal(path)
    assert int(re.search(r"after line (\d+): ", message)[1]) > 4000


def test_an_empty_file_has_no_columns(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("")
    assert "expected one of the columns (none)" in refusal(path)
