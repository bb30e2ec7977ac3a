"""Published rows and those of the hub give the same samples; metrics are those counted by hand."""

import pytest
import torch
from support.superglue_rows import HUB, PUBLISHED, SAMPLES

from gradalign.cli.errors import CommandError


@pytest.fixture
def superglue(example):
    return example("superglue")


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("rows", [PUBLISHED, HUB], ids=["published", "hub"])
def test_rows_become_samples(superglue, name, rows):
    found = [sample for row in rows[name] for sample in superglue.TASKS[name].samples(row)]
    assert [(list(s.texts), s.label) for s in found] == SAMPLES[name]


@pytest.mark.parametrize("name", ["boolq", "cb", "rte"])
def test_a_row_of_a_test_split_is_refused(superglue, name):
    row = {**HUB[name][0], "label": -1}
    with pytest.raises(CommandError, match="expected rows with labels; got the label -1"):
        list(superglue.TASKS[name].samples(row))


def test_every_task_is_read(superglue):
    assert set(SAMPLES) == set(superglue.TASKS)


@pytest.mark.parametrize("rows", [PUBLISHED, HUB], ids=["published", "hub"])
def test_answers_to_one_question_belong_together(superglue, rows):
    (first, second, third) = [s for row in rows["multirc"] for s in superglue.TASKS["multirc"].samples(row)]
    assert first.question == second.question != third.question
    (berlin, rome) = [s for row in rows["record"] for s in superglue.TASKS["record"].samples(row)]
    assert berlin.question == rome.question
    assert (berlin.answer, rome.answer, berlin.right) == ("Berlin", "Rome", ["Rome"])


def test_a_span_that_is_longer_than_the_text_ends_with_it(superglue):
    row = {
        "text": "It fell",
        "span1_index": 1,
        "span1_text": "fell down",
        "span2_index": 0,
        "span2_text": "It",
        "label": 0,
    }
    (sample,) = superglue.wsc(row)
    assert sample.texts[0][0] == "# It # * fell *"


def logits_of(decided, num_classes):
    """Logits with the largest where it is decided for."""
    return torch.nn.functional.one_hot(torch.tensor(decided), num_classes).float()


def samples_of(superglue, labels, **fields):
    rows = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)] or [{}] * len(
        labels
    )
    return [superglue.Sample([("", None)], label, **row) for label, row in zip(labels, rows, strict=True)]


def test_accuracy_and_macro_f1_of_cb(superglue):
    samples = samples_of(superglue, [0, 0, 0, 1, 2])
    found = superglue.TASKS["cb"].metrics(samples, logits_of([0, 0, 1, 1, 0], 3))
    # class 0: 2 of 3 decisions, 2 of 3 labels; class 1: 1 of 2, 1 of 1; class 2: never decided
    assert found == pytest.approx({"accuracy": 3 / 5, "f1": (2 / 3 + 2 / 3 + 0) / 3})


def test_a_class_that_is_nowhere_is_not_in_the_mean(superglue):
    found = superglue.accuracy_and_f1(samples_of(superglue, [0, 1]), logits_of([0, 1], 3))
    assert found == {"accuracy": 1.0, "f1": 1.0}


def test_f1_over_answers_and_whole_questions_of_multirc(superglue):
    samples = samples_of(superglue, [1, 0, 1, 1, 0], question=["a", "a", "b", "b", "b"])
    found = superglue.TASKS["multirc"].metrics(samples, logits_of([1, 0, 1, 0, 1], 2))
    # right ones: 2 of 3 decisions, 2 of 3 labels; question a alone is right in every answer
    assert found == pytest.approx({"f1a": 2 / 3, "exact_match": 1 / 2})


def test_the_entity_with_the_highest_odds_answers_a_query_of_record(superglue):
    samples = samples_of(
        superglue,
        [0, 1, 0, 1],
        question=["q", "q", "r", "r"],
        answer=["Bonn", "Rome", "New York City", "Paris"],
        right=[["Rome"], ["Rome"], ["New York", "Paris"], ["New York", "Paris"]],
    )
    odds = torch.tensor([[0.0, 1.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.5]])  # log-odds 1, 2, 1, 0.5
    found = superglue.TASKS["record"].metrics(samples, odds)
    assert found == pytest.approx({"f1": (1 + 0.8) / 2, "exact_match": 1 / 2})


def test_choices_of_copa(superglue):
    samples = samples_of(superglue, [0, 1, 1])
    assert superglue.TASKS["copa"].metrics(samples, logits_of([0, 1, 0], 2)) == pytest.approx({"accuracy": 2 / 3})
