"""Windows of a context that a model reads at once, where answers stand in them, and the best answer over all of them."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from question_formats import Question

Logits = tuple[list[float], list[float]]  # of the start and of the end, by token


@dataclass(frozen=True)
class Window:
    """A question with a part of its context, as long as the model reads at once.

    Attributes:
        question: its number.
        inputs: what the tokenizer made of it, without padding.
        offsets: for each token of the context its first character there and the one after its last, else None.
        null: the token whose start and end logits say that there is no answer in the window.
    """

    question: int
    inputs: dict[str, list[int]]
    offsets: list[tuple[int, int] | None]
    null: int


def windows(
    questions: Sequence[Question], tokenizer: Any, max_length: int, stride: int, question_length: int
) -> list[Window]:
    """Cuts each context into windows.

    Args:
        questions: with their contexts.
        tokenizer: a fast one.
        max_length: tokens of a window, with the question and the special ones.
        stride: tokens that neighbouring windows share.
        question_length: a longer question is cut to so many tokens.
    """
    made = []
    for number, question in enumerate(questions):
        encoded = tokenizer(
            _shortened(question.text, tokenizer, question_length),
            question.context,
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        for i, offsets in enumerate(encoded["offset_mapping"]):
            in_context = [part == 1 for part in encoded.sequence_ids(i)]
            made.append(
                Window(
                    number,
                    {name: encoded[name][i] for name in tokenizer.model_input_names},
                    [tuple(pair) if inside else None for pair, inside in zip(offsets, in_context, strict=True)],
                    encoded["input_ids"][i].index(tokenizer.cls_token_id),
                )
            )
    return made


def _shortened(text: str, tokenizer: Any, length: int) -> str:
    """The first tokens of a question, so that it leaves room for the context."""
    encoded = tokenizer(text, truncation=True, max_length=length, add_special_tokens=False, return_offsets_mapping=True)
    return text[: encoded["offset_mapping"][-1][1]] if encoded["input_ids"] else text


def target(window: Window, spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """First and last token of the first answer that stands in a window as a whole; twice `null` where none does."""
    places = [i for i, offset in enumerate(window.offsets) if offset is not None]
    firsts = [window.offsets[i][0] for i in places]
    lasts = [window.offsets[i][1] for i in places]
    for first, last in spans:
        if places and firsts[0] <= first and last <= lasts[-1]:
            # A character may be several byte-level tokens, all of which have its place: the answer begins with the first.
            begin = bisect_right(firsts, first) - 1
            return places[bisect_left(firsts, firsts[begin])], places[bisect_left(lasts, last)]
    return window.null, window.null


def best_span(
    window: Window, starts: Sequence[float], ends: Sequence[float], num_best: int, max_tokens: int
) -> tuple[float, int, int]:
    """The span of the context with the largest sum of start and end logit.

    Args:
        window: the tokens.
        starts: the start logits.
        ends: the end logits.
        num_best: only this many of the largest start logits are paired with this many of the largest end logits.
        max_tokens: the longest answer.

    Returns:
        The sum, the first character and the one after the last. Minus infinity and an empty span where no pair is one.
    """
    best = (-math.inf, 0, 0)
    largest_ends = heapq.nlargest(num_best, range(len(ends)), ends.__getitem__)
    for i in heapq.nlargest(num_best, range(len(starts)), starts.__getitem__):
        for j in largest_ends:
            if window.offsets[i] is None or window.offsets[j] is None or not i <= j < i + max_tokens:
                continue
            if starts[i] + ends[j] > best[0]:
                best = (starts[i] + ends[j], window.offsets[i][0], window.offsets[j][1])
    return best


def predict(
    questions: Sequence[Question],
    cut: Sequence[Window],
    logits: Sequence[Logits],
    num_best: int,
    max_tokens: int,
) -> tuple[dict[str, str], dict[str, float]]:
    """The best answer of each question over its windows, and the probability that it has none.

    With s the largest sum of start and end logit of a span in any window, and n the smallest sum at `null` of any window, the
    probability is 1 / (1 + exp(s - n)).
    """
    best = [(-math.inf, 0, 0)] * len(questions)
    null = [math.inf] * len(questions)
    for window, (starts, ends) in zip(cut, logits, strict=True):
        number = window.question
        best[number] = max(best[number], best_span(window, starts, ends, num_best, max_tokens))
        null[number] = min(null[number], starts[window.null] + ends[window.null])
    texts = {q.id: q.context[first:last] for q, (_, first, last) in zip(questions, best, strict=True)}
    no_answer = {q.id: _sigmoid(lowest - score) for q, (score, _, _), lowest in zip(questions, best, null, strict=True)}
    return texts, no_answer


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
