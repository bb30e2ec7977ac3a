import itertools
import re

import pytest

from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import Corpus, Snippet
from gradalign.cli.workload.sampling import flip_labels, shuffled_batches, split_by_group


def test_training_and_test_have_no_film_and_no_text_in_common(films):
    train, test = split_by_group(films, seed=0, train_size=8000, test_size=2000)
    assert (len(train), len(test)) == (8000, 2000)
    assert not {s.group for s in train} & {s.group for s in test}
    assert not {words(s.text) for s in train} & {words(s.text) for s in test}


def words(text):
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_split_follows_the_seed_alone(films):
    first, again, other = (split_by_group(films, seed, 500, 500) for seed in (3, 3, 4))
    assert first == again
    assert {s.group for s in first[1]} != {s.group for s in other[1]}


def test_a_split_that_is_too_large_is_refused_with_the_sizes_available():
    corpus = Corpus("three", ["a", "b"], [Snippet(f"text {i}", i % 2, "one group") for i in range(3)])
    with pytest.raises(
        CommandError, match="at least 2 snippets for training and 1 for the test.*got 0 and 3 of 3 in three"
    ):
        split_by_group(corpus, 0, 2, 1)
    with pytest.raises(
        CommandError, match=r"at least 6 texts, 5 for training .*got 3 in three; lower both, or give more"
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
