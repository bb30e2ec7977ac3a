"""Normalisation, exact match and token F1, by hand."""

import pytest


@pytest.fixture
def answers(example):
    return example("answers")


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Cat's, hat!", "cats hat"), ("An apple a day", "apple day"), ("theatre", "theatre"), ("the", ""), ("", "")],
)
def test_case_punctuation_articles_and_spaces_do_not_count(answers, text, normal):
    assert answers.normalised(text) == normal


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("the Eiffel Tower", "eiffel tower.", 1, 1),
        ("Eiffel Tower in Paris", "Eiffel Tower", 0, 2 * 1 * 0.5 / 1.5),
        ("red red blue", "red blue blue", 0, 2 / 3),  # a red and a blue are common
        ("Rome", "Paris", 0, 0),
        ("", "", 1, 1),
        ("", "Paris", 0, 0),
        ("Paris", "", 0, 0),
    ],
)
def test_scores(answers, answer, right, exact, f1):
    assert answers.exact_match(answer, right) == exact
    assert answers.token_f1(answer, right) == pytest.approx(f1)


def test_of_several_right_answers_the_closest_counts(answers):
    assert answers.best(answers.token_f1, "New York City", ["London", "New York"]) == pytest.approx(0.8)
    assert answers.best(answers.exact_match, "london", ["New York", "London"]) == 1
