"""Gigaword's files and its columns on the hub become the same pairs."""

import pytest
from support.headline_rows import PAIRS, write_gigaword, write_hub

from gradalign.cli.errors import CommandError


@pytest.fixture
def load(example):
    return example("headline_formats").load


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize(("inside", "compressed"), [("", False), ("train", False), ("train", True)])
def test_gigaword(load, split, inside, compressed, tmp_path):
    write_gigaword(tmp_path / inside, compressed)
    assert load(str(tmp_path), split) == (PAIRS, int(split == "train"))  # without the text that has no headline


@pytest.mark.parametrize("columns", [("document", "summary"), ("dialogue", "topic")])
def test_the_columns_of_the_hub(load, columns, tmp_path):
    data = tmp_path / "data"
    write_hub(data, columns)
    assert load(str(data), "train", columns) == load(str(data), "dev", columns) == (PAIRS, 0)


def test_a_missing_column_is_named(load, tmp_path):
    write_hub(tmp_path)
    with pytest.raises(CommandError, match=r"--columns: expected some of \['document', 'summary'\]; got \['title'\]"):
        load(str(tmp_path), "train", ("document", "title"))


def test_a_missing_file_is_named(load, tmp_path):
    write_gigaword(tmp_path)
    (tmp_path / "train.title.txt").unlink()
    with pytest.raises(
        CommandError, match=r"--data: expected train.title.txt in .* or in its folder train; got neither"
    ):
        load(str(tmp_path), "train")


def test_files_of_different_lengths_do_not_belong_together(load, tmp_path):
    write_gigaword(tmp_path)
    (tmp_path / "valid.title.filter.txt").write_text("one\n")
    with pytest.raises(CommandError, match=r"as many lines in valid.article.filter.txt and .*; got 3 and 1"):
        load(str(tmp_path), "dev")


def test_a_file_is_not_taken_for_both_splits(load, tmp_path):
    (tmp_path / "heads.csv").write_text("document,summary\na b c,a\n")
    for split in ("train", "dev"):
        with pytest.raises(CommandError, match=r"--data: expected a folder or a hub name, .*; got .*heads.csv, a file"):
            load(str(tmp_path / "heads.csv"), split)


def test_a_byte_order_mark_is_no_part_of_a_text(load, tmp_path):
    write_gigaword(tmp_path)
    path = tmp_path / "train.article.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(str(tmp_path), "train") == (PAIRS, 1)
