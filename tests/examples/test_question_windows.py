"""Windows hold the whole context, know where answers stand, and give the best answer over all of them."""

import math

import pytest
from support.tiny_models import tiny_tokenizer


@pytest.fixture
def cut(example):
    example("question_formats")
    return example("question_windows")


@pytest.fixture
def question(example):
    formats = example("question_formats")

    def make(context, *answers, text="who?"):
        spans = tuple((context.index(answer), context.index(answer) + len(answer)) for answer in answers)
        return formats.Question("1", text, context, answers, spans)

    return make


CONTEXT = "ann has a cat and bob has a dog"  # 24 letters, a token each


def letters(window, context=CONTEXT):
    """What of the context is in a window."""
    return "".join(context[slice(*offset)] for offset in window.offsets if offset)


def test_windows_overlap_by_the_stride_and_leave_nothing_out(cut, question):
    windows = cut.windows([question(CONTEXT)], tiny_tokenizer(), max_length=17, stride=3, question_length=8)
    # 17 tokens less 3 special ones and the 4 of the question
    assert [letters(window) for window in windows] == ["annhasacat", "catandbobh", "obhasadog"]
    assert all(len(window.inputs["input_ids"]) <= 17 for window in windows)


def test_a_long_question_is_cut(cut, question):
    (window,) = cut.windows([question("ann", text="who is it then")], tiny_tokenizer(), 17, 2, question_length=5)
    assert len(window.inputs["input_ids"]) == 3 + 5 + 3


def test_targets_are_the_tokens_of_the_answer_or_null(cut, question):
    asked = question(CONTEXT, "cat")
    windows = cut.windows([asked], tiny_tokenizer(), max_length=17, stride=2, question_length=8)
    targets = [cut.target(window, asked.spans) for window in windows]
    first, last = targets[0]
    assert CONTEXT[windows[0].offsets[first][0] : windows[0].offsets[last][1]] == "cat"
    # The second window begins within the answer.
    assert letters(windows[1])[:2] == "at"
    assert targets[1:] == [(0, 0)] * (len(windows) - 1)
    assert cut.target(windows[0], ()) == (0, 0)


def test_the_first_answer_that_is_there_is_the_target(cut, question):
    asked = question(CONTEXT, "ann", "dog")
    *_, last = cut.windows([asked], tiny_tokenizer(), max_length=17, stride=2, question_length=8)
    first, end = cut.target(last, asked.spans)
    assert CONTEXT[last.offsets[first][0] : last.offsets[end][1]] == "dog"


def test_an_answer_begins_with_the_first_of_the_tokens_of_its_character(cut, question):
    # In byte-level tokens a rare character is several, which all have its place.
    window = cut.Window(0, {}, [None, (0, 3), (4, 5), (4, 5), (4, 5), (6, 7), None], 0)
    assert cut.target(window, [(4, 5)]) == (2, 2)
    assert cut.target(window, [(4, 7)]) == (2, 5)
    assert cut.target(window, [(0, 3)]) == (1, 1)


def window_of(cut, offsets, question=0):
    return cut.Window(question, {}, offsets, 0)


OFFSETS = [None, None, (0, 1), (2, 3), (4, 5), None]


@pytest.mark.parametrize(
    ("starts", "ends", "expected"),
    [
        ([0, 0, 3, 1, 0, 0], [0, 0, 0, 1, 2, 0], (5, 0, 5)),
        ([9, 9, 1, 0, 0, 9], [9, 9, 1, 0, 0, 9], (2, 0, 1)),  # neither the question nor the special tokens are answers
        ([0, 0, 0, 0, 3, 0], [0, 0, 3, 0, 1, 0], (4, 4, 5)),  # no end before its start
    ],
)
def test_the_best_span_is_of_the_context_and_in_order(cut, starts, ends, expected):
    assert cut.best_span(window_of(cut, OFFSETS), starts, ends, num_best=6, max_tokens=3) == expected


def test_a_span_is_no_longer_than_allowed(cut):
    starts, ends = [0, 0, 3, 0, 0, 0], [0, 0, 0, 0, 3, 0]
    assert cut.best_span(window_of(cut, OFFSETS), starts, ends, num_best=6, max_tokens=3)[1:] == (0, 5)
    assert cut.best_span(window_of(cut, OFFSETS), starts, ends, num_best=6, max_tokens=2)[0] == 3


def test_only_the_largest_logits_are_paired(cut):
    starts, ends = [5, 4, 3, 0, 0, 0], [5, 4, 3, 0, 0, 0]
    window = window_of(cut, OFFSETS)
    assert cut.best_span(window, starts, ends, num_best=3, max_tokens=3) == (6, 0, 1)
    assert cut.best_span(window, starts, ends, num_best=2, max_tokens=3) == (-math.inf, 0, 0)


def test_the_best_answer_over_windows_and_its_odds(cut, question):
    windows = [window_of(cut, [None, (0, 3)]), window_of(cut, [None, (4, 7)])]
    logits = [([1.0, 2.0], [1.0, 2.0]), ([2.0, 3.0], [1.0, 2.0])]
    texts, no_answer = cut.predict([question(CONTEXT)], windows, logits, 2, 5)
    assert texts == {"1": "has"}
    # the best span has 5, the smallest sum at the null token is 2
    assert no_answer == {"1": pytest.approx(1 / (1 + math.exp(5 - 2)))}


def test_where_no_span_is_possible_there_is_surely_no_answer(cut, question):
    texts, no_answer = cut.predict([question(CONTEXT)], [window_of(cut, [None, None])], [([1.0, 0], [1.0, 0])], 2, 5)
    assert (texts, no_answer) == ({"1": ""}, {"1": 1.0})
