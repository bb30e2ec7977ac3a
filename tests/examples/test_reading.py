"""Files, folders and names become rows, nothing is left out in silence, and a file is one split."""

from __future__ import annotations

import datasets
import pytest

from gradalign.cli.errors import CommandError


@pytest.fixture
def reading(example):
    return example("reading")


def test_rows_come_from_files(reading, tmp_path):
    (tmp_path / "a.csv").write_text('text,label\nhello,1\n"two\nlines",0\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x", "label": true}\n')
    (tmp_path / "c.xyz").write_text("?")
    assert reading.load_part(tmp_path / "a.csv", "train")[:] == {"text": ["hello", "two\nlines"], "label": [1, 0]}
    assert reading.load_part(tmp_path / "b.jsonl", "validation")[:] == {"text": ["x"], "label": [True]}
    with pytest.raises(CommandError, match=r"expected a file that ends in \.csv, .*got .*c\.xyz"):
        reading.load_part(tmp_path / "c.xyz", "train")
    with pytest.raises(CommandError, match="expected a file, a folder or a hub name of a data set; got .*nowhere"):
        reading.load_part(tmp_path / "nowhere", "train")


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_words_are_no_missing_values(reading, tmp_path, folder):
    data = tmp_path / "data"
    data.mkdir()
    words = ["None", "NA", "null", "nan", "n/a"]
    (data / "train.csv").write_text("text,label\n" + "".join(f"{word},{word}\n" for word in words) + ",x\n")
    rows = reading.load_part(data if folder else data / "train.csv", "train")
    assert rows[:] == {"text": [*words, None], "label": [*words, "x"]}


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_a_column_of_numbers_may_have_words_and_empty_cells(reading, tmp_path, folder):
    """pandas reads 10,000 rows at a time, each part by itself, and labels 0 and 1 with an empty cell as 0.0 and 1.0."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [f"a,{i % 2},{i}\n" for i in range(10_500)] + ["b,,NA\n"]
    (data / "train.csv").write_text("text,label,score\n" + "".join(rows))
    (data / "validation.csv").write_text("text,label,score\nc,1,NA\n")
    found = reading.load_part(data if folder else data / "train.csv", "train", as_texts=True)
    assert found[0] == {"text": "a", "label": "0", "score": "0"}
    assert found[10_500] == {"text": "b", "label": None, "score": "NA"}
    assert reading.load_part(data if folder else data / "validation.csv", "validation", as_texts=True)["label"][:] == [
        "1"
    ]


def test_a_file_has_no_other_split(reading, tmp_path):
    (tmp_path / "a.csv").write_text("text\nhello\n")
    with pytest.raises(CommandError, match="--validation: expected a file beside .*got none"):
        reading.validation_of(str(tmp_path / "a.csv"), None)
    assert reading.validation_of(str(tmp_path / "a.csv"), "b.csv") == "b.csv"
    assert reading.validation_of("owner/name", None) == "owner/name"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_is_not_every_split_of_a_data_set(reading, tmp_path, split):
    (tmp_path / "a.csv").write_text("text\nhello\n")
    with pytest.raises(
        CommandError, match=rf"expected a folder or a hub name, .* split {split}; got .*a\.csv, a file.*; put it"
    ):
        reading.load_rows(tmp_path / "a.csv", split)


def test_a_data_set_that_is_a_script_is_an_error_of_the_user(reading, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("")
    with pytest.raises(CommandError, match="got .*old': Dataset scripts are no longer supported"):
        reading.load_rows(tmp_path / "old", "train")


def test_counts_are_printed_and_nothing_at_all_is_refused(reading, capsys):
    found = reading.checked({"train": reading.Rows(3, 1), "validation": reading.Rows(2)})
    assert found == {"train": {"used": 3, "left_out": 1}, "validation": {"used": 2, "left_out": 0}}
    assert "train: 3 used, 1 left out\nvalidation: 2 used, 0 left out" in capsys.readouterr().out
    with pytest.raises(CommandError, match="expected rows for validation; got none that can be used, 2 without"):
        reading.checked({"train": reading.Rows(3), "validation": reading.Rows(0, 2)})


def test_names_of_classes_survive_parquet(reading, tmp_path):
    """What tells a label of -1 that means none from one that is a number."""
    labels = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"label": [-1, 0]}, features=labels).to_parquet(tmp_path / "a.parquet")
    rows = reading.load_file(tmp_path / "a.parquet")
    assert isinstance(rows.features["label"], datasets.ClassLabel)
    assert rows["label"][:] == [-1, 0]
