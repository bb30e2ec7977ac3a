import bz2
import itertools
import re

import pytest

from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import (
    Corpus,
    Snippet,
    flip_labels,
    from_csv,
    load_corpus,
    rotten_tomatoes,
    shuffled_batches,
    split_by_group,
)


@pytest.fixture(scope="module")
def films(asset):
    return rotten_tomatoes(asset("rotten-tomatoes"))


def normalised(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_snippets_are_the_reviews_without_plot_summaries_and_duplicates(films):
    assert films.classes == ["fresh", "rotten"]
    assert len({normalised(s.text) for s in films.snippets}) == len(films.snippets) == 12749
    assert len({s.group for s in films.snippets}) == 503  # of 508 names: five films have two


def test_training_and_test_have_no_film_and_no_text_in_common(films):
    train, test = split_by_group(films, seed=0, train_size=8000, test_size=2000)
    assert (len(train), len(test)) == (8000, 2000)
    assert not {s.group for s in train} & {s.group for s in test}
    assert not {normalised(s.text) for s in train} & {normalised(s.text) for s in test}


def test_two_names_that_share_a_snippet_are_one_film(films):
    names = ("the_crime_of_padre_amaro", "el_crimen_del_padre_amaro")
    assert len({s.group for s in films.snippets} & set(names)) == 1


def test_the_split_follows_the_seed_alone(films):
    first, again, other = (split_by_group(films, seed, 500, 500) for seed in (3, 3, 4))
    assert first == again
    assert {s.group for s in first[1]} != {s.group for s in other[1]}


def test_a_split_that_is_too_large_is_refused_with_the_sizes_available():
    corpus = Corpus("three", ["a", "b"], [Snippet(f"text {i}", i % 2, str(i)) for i in range(3)])
    with pytest.raises(
        CommandError, match="at least 5 snippets for training and 1 for the test.*got 2 and 1 of 3 in three"
    ):
        split_by_group(corpus, 0, 5, 1)


def test_label_noise_changes_exactly_its_fraction_of_the_labels():
    snippets = [Snippet(f"text {i}", i % 3, "") for i in range(40)]
    noisy = flip_labels(snippets, 0.25, num_classes=3, seed=1)
    assert sum(a.label != b.label for a, b in zip(snippets, noisy, strict=True)) == 10
    assert {s.label for s in noisy} == {0, 1, 2}
    assert flip_labels(snippets, 0.0, num_classes=3, seed=1) == snippets


def test_batches_are_slices_of_shuffled_epochs():
    drawn = list(itertools.islice(shuffled_batches(10, 4, seed=0), 5))
    assert [len(batch) for batch in drawn] == [4] * 5
    flat = list(itertools.chain(*drawn))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert drawn == list(itertools.islice(shuffled_batches(10, 4, seed=0), 5))


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


def test_the_corpus_is_the_csv_where_one_is_given(tmp_path, films):
    path = tmp_path / "texts.csv"
    path.write_text(CSV)
    assert load_corpus(str(path), "review", "verdict", None) == from_csv(path, "review", "verdict", None)
    assert load_corpus(None, "text", "label") == films
