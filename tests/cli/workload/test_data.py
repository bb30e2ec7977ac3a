import bz2
import re

import pytest

from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import from_csv, load_corpus


def normalised(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_snippets_are_the_reviews_without_plot_summaries_and_duplicates(films):
    assert films.classes == ["fresh", "rotten"]
    assert len({normalised(s.text) for s in films.snippets}) == len(films.snippets) == 12749
    assert len({s.group for s in films.snippets}) == 503  # of 508 names: five films have two


def test_two_names_that_share_a_snippet_are_one_film(films):
    names = ("the_crime_of_padre_amaro", "el_crimen_del_padre_amaro")
    assert len({s.group for s in films.snippets} & set(names)) == 1


TWO_FILMS = "review,verdict,film\nGood!,1,a\nFine,1,b\nBad.,0,a\n"
CSV = "review,verdict,film\nGood!,1,a\ngood,1,b\nBad.,0,a\n,0,c\nFine,,c\n"


@pytest.mark.parametrize("name", ["texts.csv", "texts.csv.bz2"])
def test_a_csv_keeps_usable_rows_once(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bz2.compress(CSV.encode()) if name.endswith("bz2") else CSV.encode())
    corpus = from_csv(path, "review", "verdict", None)
    assert corpus.classes == ["0", "1"]
    assert [(s.text, s.label) for s in corpus.snippets] == [("Good!", 1), ("Bad.", 0)]
    assert len({s.group for s in corpus.snippets}) == 2


def test_a_group_column_joins_rows(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(CSV)
    assert len({s.group for s in from_csv(path, "review", "verdict", "film").snippets}) == 1


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (None, ("review", "verdict", None), "--csv: expected a CSV file; got"),
        (b"\xff\xfe\x00bad", ("review", "verdict", None), "--csv: expected a CSV file in UTF-8"),
        (
            CSV.encode(),
            ("text", "verdict", None),
            "--text-column: expected one of the columns review, verdict, film .*got 'text'",
        ),
        (CSV.encode(), ("review", "label", None), "--label-column: .*got 'label'"),
        (CSV.encode(), ("review", "verdict", "movie"), "--group-column: .*got 'movie'"),
        (
            b"review,verdict\nGood,1\nBad,1\n",
            ("review", "verdict", None),
            "at least two classes in 'verdict'; got \\['1'\\]",
        ),
    ],
)
def test_an_unusable_csv_is_reported(tmp_path, content, columns, message):
    path = tmp_path / "texts.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CommandError, match=message):
        from_csv(path, *columns)


def test_the_corpus_is_the_csv_where_one_is_given(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(TWO_FILMS)
    assert load_corpus(str(path), "review", "verdict", "film") == from_csv(path, "review", "verdict", "film")


def test_without_a_csv_the_corpus_is_the_rotten_tomatoes_snippets(films):
    assert load_corpus(None, "text", "label") == films
