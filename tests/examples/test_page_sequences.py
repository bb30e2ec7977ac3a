"""The commands behind the figures of question answering and headlines run as they stand, but for steps and seeds."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.headline_rows import write_gigaword

from benchmarks.quality import film_cast

PAGE = (Path(__file__).parents[2] / "docs" / "examples.md").read_text().replace("\\\n", " ")


def arguments(name, data):
    """Those of the page's command for an example on these data."""
    (rest,) = re.findall(rf"^python examples/{name}\.py(.* --data {data} .*)$", PAGE, re.MULTILINE)
    return [*shlex.split(rest), "--seeds=1", "--device=cpu"]


@pytest.mark.slow
def test_questions_about_casts(example, asset, tmp_path, monkeypatch):
    asset("rotten-tomatoes")
    asset("bert-tiny")
    monkeypatch.chdir(tmp_path)
    film_cast.main(["film-cast"])
    short = ["--steps=2", "--train-limit=60", "--dev-limit=12"]
    record = example("question_answering").main([*arguments("question_answering", "film-cast"), *short])
    assert list(record["runs"]) == ["plain", "gradalign"]
    assert (tmp_path / "film-cast.json").is_file()


@pytest.mark.slow
def test_subjects_of_emails(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_gigaword(tmp_path / "headlines")
    short = ["--steps=2", "--batch-size=2", "--micro-batches=2"]
    record = example("summarization").main([*arguments("summarization", "headlines"), *short])
    assert list(record["runs"]) == ["plain", "gradalign"]
    assert (tmp_path / "headlines.json").is_file()
