"""The official figures of SQuAD 2.0, by hand."""

import pytest

ANSWERS = {"a": ["Ann Smith"], "b": ["Bob"], "c": [], "d": []}
PREDICTIONS = {"a": "Ann", "b": "bob.", "c": "Eve", "d": "Eve"}
NO_ANSWER = {"a": 0.1, "b": 0.6, "c": 0.3, "d": 0.9}


@pytest.fixture
def evaluate(example):
    return example("squad_metrics").evaluate


def test_figures_at_a_threshold(evaluate):
    found = evaluate(ANSWERS, PREDICTIONS, NO_ANSWER, threshold=0.5)
    # a: f1 2/3; b: said to have no answer; c: answered; d: right
    assert found["exact"] == pytest.approx(100 * 1 / 4)
    assert found["f1"] == pytest.approx(100 * (2 / 3 + 1) / 4)
    assert (found["HasAns_exact"], found["NoAns_exact"]) == (0, 50)
    assert found["HasAns_f1"] == pytest.approx(100 * (2 / 3) / 2)
    assert found["NoAns_f1"] == 50


def test_a_threshold_is_exceeded_not_reached(evaluate):
    assert evaluate(ANSWERS, PREDICTIONS, NO_ANSWER, threshold=0.6)["HasAns_exact"] == 50
    assert evaluate(ANSWERS, PREDICTIONS, NO_ANSWER, threshold=0.59)["HasAns_exact"] == 0


def test_the_best_thresholds(evaluate):
    found = evaluate(ANSWERS, PREDICTIONS, NO_ANSWER)
    # Nothing answered: 2 right. Then a: exact 0, f1 2/3; c: -1; b: 1; d: -1.
    assert (found["best_exact"], found["best_exact_thresh"]) == (50, 0)
    assert found["best_f1"] == pytest.approx(100 * (2 + 2 / 3) / 4)
    assert found["best_f1_thresh"] == 0.1


def test_the_best_threshold_reaches_what_it_promises(evaluate):
    best = evaluate(ANSWERS, PREDICTIONS, NO_ANSWER)
    for name in ("exact", "f1"):
        assert evaluate(ANSWERS, PREDICTIONS, NO_ANSWER, best[f"best_{name}_thresh"])[name] == best[f"best_{name}"]
        grid = [evaluate(ANSWERS, PREDICTIONS, NO_ANSWER, i / 20)[name] for i in range(21)]
        assert max(grid) == pytest.approx(best[f"best_{name}"])


def test_the_best_threshold_divides_no_tie(evaluate):
    answers, predictions = {"a": ["Ann"], "b": []}, {"a": "Ann", "b": "Eve"}
    for order in (("a", "b"), ("b", "a")):
        found = evaluate({id: answers[id] for id in order}, predictions, dict.fromkeys(order, 0.5))
        assert (found["best_exact"], found["best_exact_thresh"]) == (50, 0)  # both are answered, or neither


def test_an_empty_answer_to_a_question_without_one_stays_right(evaluate):
    found = evaluate({"a": ["Ann"], "b": []}, {"a": "Ann", "b": ""}, {"a": 0.5, "b": 0.1}, threshold=1.0)
    assert (found["exact"], found["best_exact"], found["best_exact_thresh"]) == (100, 100, 0.5)


def test_where_all_have_answers_there_is_no_threshold(evaluate):
    found = evaluate({"a": ["Ann", "Anna"], "b": ["Bob"]}, {"a": "anna", "b": "the Bob Day"}, {"a": 0.9, "b": 0.9})
    assert found == {"exact": 50, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}


def test_an_accepted_answer_of_articles_alone_says_nothing(evaluate):
    found = evaluate({"a": ["the"], "b": []}, {"a": "", "b": ""}, {"a": 0.0, "b": 0.0})
    assert found["HasAns_exact"] == 100
