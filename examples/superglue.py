"""The eight tasks of SuperGLUE: their published rows as inputs of a text encoder, and their official metrics.

Rows are those of the published JSON lines, or of the data set on the hub, which has classes as numbers and one row for each
answer of MultiRC and each query of ReCoRD.

References:
    Wang et al.: SuperGLUE: A Stickier Benchmark for General-Purpose Language Understanding Systems, 2019, arXiv:1905.00537.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from answers import best, exact_match, token_f1
from torch import Tensor

from gradalign.cli.errors import CommandError

Row = Mapping[str, Any]
YES_NO = ("False", "True")


class Sample(NamedTuple):
    """One decision of the classifier.

    Attributes:
        texts: pairs of texts, of which the second may be None; more than one pair where they are choices.
        label: the class, or the right choice.
        question: samples that are judged together have the same.
        answer: what the class 1 of this sample would answer, in words.
        right: the right answers to the question, in words.
    """

    texts: Sequence[tuple[str, str | None]]
    label: int
    question: Hashable = None
    answer: str = ""
    right: Sequence[str] = ()


class Task(NamedTuple):
    """A way to read rows, and to judge decisions.

    Attributes:
        num_classes: of the logits of a pair of texts: 1 where pairs are choices.
        samples: those of one row.
        metrics: (samples, logits) -> name -> value.
        folder: of the published files; empty for tasks that are none of SuperGLUE.
    """

    num_classes: int
    samples: Callable[[Row], Iterable[Sample]]
    metrics: Callable[[Sequence[Sample], Tensor], dict[str, float]]
    folder: str = ""


def label_of(row: Row, names: Sequence[str] = YES_NO) -> int:
    """The number of the class, which the published files name and the hub numbers in the same order.

    Raises:
        CommandError: a row of a test split, whose label is kept secret.
    """
    label = row["label"]
    if isinstance(label, str):
        return names.index(label)
    if label < 0:
        raise CommandError(f"expected rows with labels; got the label {label}, which the rows of a test split have")
    return int(label)


def boolq(row: Row) -> Iterator[Sample]:
    """Question and passage."""
    yield Sample([(row["question"], row["passage"])], label_of(row))


def entailment(names: Sequence[str]) -> Callable[[Row], Iterator[Sample]]:
    """Premise and hypothesis, of CB and RTE."""

    def samples(row: Row) -> Iterator[Sample]:
        yield Sample([(row["premise"], row["hypothesis"])], label_of(row, names))

    return samples


ASKED = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def copa(row: Row) -> Iterator[Sample]:
    """The premise and what is asked, with each of two choices."""
    first = f"{row['premise']} {ASKED[row['question']]}"
    yield Sample([(first, row["choice1"]), (first, row["choice2"])], label_of(row))


def multirc(row: Row) -> Iterator[Sample]:
    """The paragraph, and the question with one of its answers: is the answer right? Several may be."""
    if "paragraph" in row:
        i = row["idx"]
        second = f"{row['question']} {row['answer']}"
        yield Sample([(row["paragraph"], second)], label_of(row), (i["paragraph"], i["question"]))
        return
    passage = row["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            second = f"{question['question']} {answer['text']}"
            yield Sample([(passage["text"], second)], label_of(answer), (row["idx"], question["idx"]))


def record(row: Row) -> Iterator[Sample]:
    """The passage, and the query with one of the passage's entities in its gap: is it the right one?"""
    passage = row["passage"]
    if isinstance(passage, str):
        yield from _query(passage, row["entities"], row["query"], row["answers"], tuple(row["idx"].values()))
        return
    text = passage["text"]
    entities = {text[entity["start"] : entity["end"] + 1] for entity in passage["entities"]}  # the end is included
    for query in row["qas"]:
        right = [answer["text"] for answer in query["answers"]]
        yield from _query(text, entities, query["query"], right, (row["idx"], query["idx"]))


def _query(
    passage: str, entities: Iterable[str], query: str, right: Sequence[str], number: Hashable
) -> Iterator[Sample]:
    text = passage.replace("\n@highlight\n", " ")
    right = sorted(set(right))
    for entity in sorted(set(entities)):
        pair = (text, query.replace("@placeholder", entity))
        yield Sample([pair], int(entity in right), number, entity, right)


def wic(row: Row) -> Iterator[Sample]:
    """Two sentences with the word marked: does it have the same sense in both?"""
    marked = [
        _marked(sentence, row[f"start{i}"], row[f"end{i}"])
        for i, sentence in enumerate((row["sentence1"], row["sentence2"]), 1)
    ]
    yield Sample([(f"{row['word']}: {marked[0]}", marked[1])], label_of(row))


def _marked(text: str, start: int, end: int) -> str:
    return f"{text[:start]}* {text[start:end]} *{text[end:]}"


def wsc(row: Row) -> Iterator[Sample]:
    """The text with noun and pronoun marked, and the two: does the pronoun stand for the noun?

    Spans begin at the given word; the text of some spans differs from it in case and punctuation, their length does not.
    """
    target = row.get("target", row)
    words = row["text"].split()
    for name, mark in (("span1", "*"), ("span2", "#")):
        first = target[f"{name}_index"]
        last = min(first + len(target[f"{name}_text"].split()), len(words)) - 1
        words[first] = f"{mark} {words[first]}"
        words[last] = f"{words[last]} {mark}"
    yield Sample([(" ".join(words), f"{target['span2_text']}: {target['span1_text']}")], label_of(row))


def accuracy(samples: Sequence[Sample], logits: Tensor) -> dict[str, float]:
    """The share of right decisions."""
    return {"accuracy": float((logits.argmax(1) == _labels(samples)).double().mean())}


def accuracy_and_f1(samples: Sequence[Sample], logits: Tensor) -> dict[str, float]:
    """Accuracy, and the mean over classes of their F1: over those that a label or a decision has."""
    decided, labels = logits.argmax(1), _labels(samples)
    scores = [class_f1(decided, labels, c) for c in torch.cat([decided, labels]).unique().tolist()]
    return {**accuracy(samples, logits), "f1": sum(scores) / len(scores)}


def class_f1(decided: Tensor, labels: Tensor, of_class: int) -> float:
    """F1 of one class; 0 where there is none of it."""
    decided, labels = decided == of_class, labels == of_class
    return 2 * int((decided & labels).sum()) / max(1, int(decided.sum() + labels.sum()))


def answers_metrics(samples: Sequence[Sample], logits: Tensor) -> dict[str, float]:
    """Of MultiRC: F1 over all answers, and the share of questions with every answer judged right."""
    decided, labels = logits.argmax(1), _labels(samples)
    whole: dict[Hashable, bool] = defaultdict(lambda: True)
    for sample, right in zip(samples, (decided == labels).tolist(), strict=True):
        whole[sample.question] &= right
    return {"f1a": class_f1(decided, labels, 1), "exact_match": sum(whole.values()) / len(whole)}


def entity_metrics(samples: Sequence[Sample], logits: Tensor) -> dict[str, float]:
    """Of ReCoRD: token F1 and exact match of the entity whose log-odds are the highest, against the answer it is closest to."""
    odds = (logits[:, 1] - logits[:, 0]).tolist()
    chosen: dict[Hashable, tuple[float, Sample]] = {}
    for sample, value in zip(samples, odds, strict=True):
        if sample.question not in chosen or value > chosen[sample.question][0]:
            chosen[sample.question] = value, sample
    found = [sample for _, sample in chosen.values()]
    return {
        name: sum(best(score, s.answer, s.right) for s in found) / len(found)
        for name, score in (("f1", token_f1), ("exact_match", exact_match))
    }


def _labels(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([sample.label for sample in samples])


TASKS = {
    "boolq": Task(2, boolq, accuracy, "BoolQ"),
    "cb": Task(3, entailment(("entailment", "contradiction", "neutral")), accuracy_and_f1, "CB"),
    "copa": Task(1, copa, accuracy, "COPA"),
    "multirc": Task(2, multirc, answers_metrics, "MultiRC"),
    "record": Task(2, record, entity_metrics, "ReCoRD"),
    "rte": Task(2, entailment(("entailment", "not_entailment")), accuracy, "RTE"),
    "wic": Task(2, wic, accuracy, "WiC"),
    "wsc": Task(2, wsc, accuracy, "WSC"),
}
