"""A few rows of every task of SuperGLUE: as they are published, as the hub has them, and the samples that both become."""

from __future__ import annotations

PASSAGE = "Rome is older than Berlin.\n@highlight\nCities differ"

PUBLISHED = {
    "boolq": [{"question": "is it wet", "passage": "Water is wet.", "idx": 0, "label": True}],
    "cb": [
        {"premise": "He may come.", "hypothesis": "he comes", "label": "neutral", "idx": 0},
        {"premise": "He came.", "hypothesis": "he comes", "label": "contradiction", "idx": 1},
        {"premise": "He comes.", "hypothesis": "he comes", "label": "entailment", "idx": 2},
    ],
    "copa": [
        {
            "premise": "It rained.",
            "choice1": "It got wet.",
            "choice2": "It burnt.",
            "question": "effect",
            "label": 0,
            "idx": 0,
        },
        {
            "premise": "He fell.",
            "choice1": "He ate.",
            "choice2": "He slipped.",
            "question": "cause",
            "label": 1,
            "idx": 1,
        },
    ],
    "multirc": [
        {
            "idx": 0,
            "version": 1.1,
            "passage": {
                "text": "Ann has a cat and a dog.",
                "questions": [
                    {
                        "question": "What has Ann?",
                        "idx": 0,
                        "answers": [{"text": "a cat", "idx": 0, "label": 1}, {"text": "a cow", "idx": 1, "label": 0}],
                    },
                    {"question": "Who?", "idx": 1, "answers": [{"text": "Ann", "idx": 2, "label": 1}]},
                ],
            },
        }
    ],
    "record": [
        {
            "source": "Daily mail",
            "idx": 0,
            "passage": {
                "text": PASSAGE,
                "entities": [{"start": 0, "end": 3}, {"start": 19, "end": 24}, {"start": 0, "end": 3}],
            },
            "qas": [
                {"query": "@placeholder is old", "answers": [{"start": 0, "end": 3, "text": "Rome"}], "idx": 0},
            ],
        }
    ],
    "rte": [
        {"premise": "He slept.", "hypothesis": "He sang.", "label": "not_entailment", "idx": 0},
        {"premise": "He slept.", "hypothesis": "He rested.", "label": "entailment", "idx": 1},
    ],
    "wic": [
        {
            "word": "bank",
            "sentence1": "The bank lends.",
            "sentence2": "A river bank.",
            "start1": 4,
            "end1": 8,
            "start2": 8,
            "end2": 12,
            "version": 1.1,
            "label": False,
            "idx": 0,
        }
    ],
    "wsc": [
        {
            "text": "The old man saw her, and he smiled.",
            "target": {"span1_index": 0, "span1_text": "The old man", "span2_index": 6, "span2_text": "he"},
            "idx": 0,
            "label": True,
        }
    ],
}


def _numbered(rows, names):
    return [{**row, "label": names.index(row["label"])} for row in rows]


_wsc = PUBLISHED["wsc"][0]
HUB = {
    **PUBLISHED,
    "boolq": [{**PUBLISHED["boolq"][0], "label": 1}],
    "cb": _numbered(PUBLISHED["cb"], ["entailment", "contradiction", "neutral"]),
    "rte": _numbered(PUBLISHED["rte"], ["entailment", "not_entailment"]),
    "wic": [{**PUBLISHED["wic"][0], "label": 0}],
    "wsc": [{"text": _wsc["text"], **_wsc["target"], "idx": 0, "label": 1}],
    "multirc": [
        {
            "paragraph": "Ann has a cat and a dog.",
            "question": question,
            "answer": answer,
            "idx": {"paragraph": 0, "question": number, "answer": i},
            "label": label,
        }
        for i, (number, question, answer, label) in enumerate(
            [(0, "What has Ann?", "a cat", 1), (0, "What has Ann?", "a cow", 0), (1, "Who?", "Ann", 1)]
        )
    ],
    "record": [
        {
            "passage": PASSAGE,
            "query": "@placeholder is old",
            "entities": ["Berlin", "Rome"],
            "answers": ["Rome"],
            "idx": {"passage": 0, "query": 0},
        }
    ],
}

_effect, _cause = "It rained. What happened as a result?", "He fell. What was the cause of this?"
_pets, _text = "Ann has a cat and a dog.", "Rome is older than Berlin. Cities differ"
# Pairs of texts, and the label.
SAMPLES = {
    "boolq": [([("is it wet", "Water is wet.")], 1)],
    "cb": [
        ([("He may come.", "he comes")], 2),
        ([("He came.", "he comes")], 1),
        ([("He comes.", "he comes")], 0),
    ],
    "copa": [
        ([(_effect, "It got wet."), (_effect, "It burnt.")], 0),
        ([(_cause, "He ate."), (_cause, "He slipped.")], 1),
    ],
    "multirc": [
        ([(_pets, "What has Ann? a cat")], 1),
        ([(_pets, "What has Ann? a cow")], 0),
        ([(_pets, "Who? Ann")], 1),
    ],
    "record": [([(_text, "Berlin is old")], 0), ([(_text, "Rome is old")], 1)],
    "rte": [([("He slept.", "He sang.")], 1), ([("He slept.", "He rested.")], 0)],
    "wic": [([("bank: The * bank * lends.", "A river * bank *.")], 0)],
    "wsc": [([("* The old man * saw her, and # he # smiled.", "he: The old man")], 1)],
}
