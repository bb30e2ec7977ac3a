import csv

import pytest

from benchmarks.quality import export
from benchmarks.quality.archives import RatedText
from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import Corpus, Snippet


@pytest.fixture
def shipped(monkeypatch):
    """Small sets in the place of those that packages ship: three texts a film, two a document."""
    snippets = [Snippet(f"text {i}", i % 2, f"film {i // 3}") for i in range(60)]
    texts = [RatedText(f'say "{i}"', (-1.5, 0.0, 2.0)[i % 3], str(i // 2)) for i in range(120)]
    monkeypatch.setattr(export, "load_corpus", lambda *columns: Corpus("films", ["fresh", "rotten"], snippets))
    monkeypatch.setattr(export.archives, "vader", lambda: {"tweets": [*texts, texts[0]]})
    monkeypatch.setattr(export, "VALIDATION", 8)


def rows_of(path):
    with path.open(newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def test_files_hold_the_texts_and_share_no_film_or_document(shipped, tmp_path, capsys):
    export.main([str(tmp_path / "texts")])
    found = {path.name: rows_of(path) for path in (tmp_path / "texts").iterdir()}
    assert {name: len(rows) for name, rows in found.items()} == {
        "rotten-tomatoes.train.csv": 48,
        "rotten-tomatoes.validation.csv": 8,
        "tweets.train.csv": 48,
        "tweets.validation.csv": 8,
    }
    numbers = {name: [int(text.split()[1].strip('"')) for text, _ in rows] for name, rows in found.items()}
    for name, per_group in (("rotten-tomatoes", 3), ("tweets", 2)):
        train, validation = ({i // per_group for i in numbers[f"{name}.{s}.csv"]} for s in ("train", "validation"))
        assert not train & validation
    for name, rows in found.items():
        for number, (_, label) in zip(numbers[name], rows, strict=True):
            right = {0: "negative", 2: "positive"}[number % 3] if "tweets" in name else ("fresh", "rotten")[number % 2]
            assert label == right
    assert f"{tmp_path / 'texts' / 'tweets.train.csv'}: 48 texts" in capsys.readouterr().out


def test_what_is_missing_is_named(shipped, tmp_path, monkeypatch):
    def missing():
        raise CommandError("expected vader in a file")

    monkeypatch.setattr(export.archives, "vader", missing)
    with pytest.raises(SystemExit, match="error: expected vader in a file"):
        export.main([str(tmp_path)])
