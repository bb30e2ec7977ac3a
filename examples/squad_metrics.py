"""The official figures of SQuAD 2.0: exact match and F1 over all questions, and the threshold for those without an answer.

References:
    Rajpurkar, Jia, Liang: Know What You Don't Know: Unanswerable Questions for SQuAD, 2018, arXiv:1806.03822.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

import answers as agreement

METRICS = {"exact": agreement.exact_match, "f1": agreement.token_f1}


def evaluate(
    answers: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    no_answer: Mapping[str, float],
    threshold: float = 1.0,
) -> dict[str, float]:
    """All of the official figures, in percent.

    Args:
        answers: question -> its accepted answers; none where it has no answer. The best one counts.
        predictions: question -> the answer that the model would give if there is one.
        no_answer: question -> the model's probability that there is none.
        threshold: a question is predicted to have no answer where that probability is larger.

    Returns:
        `exact` and `f1` of all questions; where some have no answer, also those of the ones with (`HasAns_`) and without
        (`NoAns_`) an answer, and the largest values that any threshold reaches (`best_`), with the threshold (`_thresh`).
    """
    # An answer of punctuation or articles alone says nothing, as in the official script.
    accepted = {id: [text for text in texts if agreement.normalised(text)] or [""] for id, texts in answers.items()}
    answerable = {id for id, texts in answers.items() if texts}
    result = {}
    for name, metric in METRICS.items():
        raw = {id: agreement.best(metric, predictions[id], texts) for id, texts in accepted.items()}
        scores = {id: float(id not in answerable) if no_answer[id] > threshold else raw[id] for id in raw}
        result[name] = _percent(scores, scores.keys())
        if len(answerable) == len(answers):
            continue
        if answerable:
            result[f"HasAns_{name}"] = _percent(scores, answerable)
        result[f"NoAns_{name}"] = _percent(scores, scores.keys() - answerable)
        result[f"best_{name}"], result[f"best_{name}_thresh"] = _best(raw, predictions, no_answer, answerable)
    return result


def _percent(scores: Mapping[str, float], ids: Collection[str]) -> float:
    return 100 * sum(scores[id] for id in ids) / len(ids)


def _best(
    raw: Mapping[str, float],
    predictions: Mapping[str, str],
    no_answer: Mapping[str, float],
    answerable: set[str],
) -> tuple[float, float]:
    """The best percentage over all thresholds, and the smallest threshold that reaches it.

    Starts with no answer at all, which is right for every question that has none, and answers one question more at a time, the
    most certain first. A threshold answers all questions of one probability or none: the best is looked for between such
    groups, where the official script looks after every question.
    """
    score = best = float(len(raw) - len(answerable))
    threshold = 0.0
    for probability, group in groupby(sorted(raw, key=no_answer.__getitem__), no_answer.__getitem__):
        # An empty answer to a question without one stays right.
        score += sum(raw[id] if id in answerable else -float(bool(predictions[id])) for id in group)
        if score > best:
            best, threshold = score, probability
    return 100 * best / len(raw), threshold
