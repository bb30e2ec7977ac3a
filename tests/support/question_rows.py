"""The same two questions in every published format of question answering, and what they become."""

from __future__ import annotations

import gzip
import json

TEXT = "Ann has a red cat. Bob has a dog.\n\nThe cat is old."
CAT = (8, 17)  # "a red cat"
QUESTION, IMPOSSIBLE = "What has Ann?", "What has Eve?"

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Pets",
            "paragraphs": [
                {
                    "context": TEXT,
                    "qas": [
                        {
                            "id": "1",
                            "question": f" {QUESTION}",
                            "answers": [
                                {"text": "a red cat", "answer_start": 8},
                                {"text": "red cat", "answer_start": 10},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "id": "2",
                            "question": IMPOSSIBLE,
                            "answers": [],
                            "plausible_answers": [{"text": "a dog", "answer_start": 27}],
                            "is_impossible": True,
                        },
                    ],
                }
            ],
        }
    ],
}
HUB = [
    {
        "id": "1",
        "title": "Pets",
        "context": TEXT,
        "question": QUESTION,
        "answers": {"text": ["a red cat", "red cat"], "answer_start": [8, 10]},
    },
    {
        "id": "2",
        "title": "Pets",
        "context": TEXT,
        "question": IMPOSSIBLE,
        "answers": {"text": [], "answer_start": []},
    },
]


def newsqa(split="train"):
    """A story of NewsQA with two questions and one that its readers call bad."""
    shared = {"isAnswerAbsent": 0.0, "isQuestionBad": 0.0}
    crowd = [{"sourcerAnswers": [{"s": 8, "e": 17}]}, {"sourcerAnswers": [{"noAnswer": True}]}]
    return {
        "version": "1",
        "data": [
            {
                "storyId": "./cnn/stories/1.story",
                "type": split,
                "text": TEXT,
                "questions": [
                    {
                        "q": QUESTION,
                        "answers": crowd,
                        "validatedAnswers": [{"s": 8, "e": 17, "count": 2}, {"noAnswer": True, "count": 1}],
                        "consensus": {"s": 10, "e": 19},  # its end points past the full stop and a space
                        **shared,
                    },
                    {"q": IMPOSSIBLE, "answers": crowd, "consensus": {"noAnswer": True}, **shared},
                    {"q": "cat cat?", "answers": crowd, "consensus": {"badQuestion": True}, **shared},
                ],
            }
        ],
    }


QUASAR_QUESTIONS = [
    {"uid": "s1q1", "question": QUESTION, "answer": "red cat", "tags": ["1tok", "yes-answer-short"]},
    {"uid": "s1q2", "question": IMPOSSIBLE, "answer": "horse", "tags": ["1tok", "no-answer-short"]},
]
QUASAR_CONTEXTS = [
    {"uid": "s1q1", "contexts": [[0.9, "A Red Cat sat ."], [0.8, "No redcat , a red cat ."], [0.1, "A dog ."]]},
    {"uid": "s1q2", "contexts": [[0.7, "A dog sat ."]]},
]
MRQA = [
    {"header": {"dataset": "NewsQA", "split": "train"}},
    {
        "id": "c1",
        "context": TEXT,
        "context_tokens": [["Ann", 0]],
        "qas": [
            {
                "qid": "1",
                "question": QUESTION,
                "question_tokens": [["What", 0]],
                "detected_answers": [{"text": "cat", "char_spans": [[14, 16], [39, 41]], "token_spans": [[4, 4]]}],
                "answers": ["cat", "the cat"],
            }
        ],
    },
]


def write_lines(path, rows, compressed=False):
    """A file with a JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def write_squad(folder):
    """Both files of SQuAD 2.0."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        (folder / f"{split}-v2.0.json").write_text(json.dumps(SQUAD))


def write_newsqa(folder):
    """The combined file of NewsQA."""
    folder.mkdir(parents=True, exist_ok=True)
    data = [story for split in ("train", "dev", "test") for story in newsqa(split)["data"]]
    (folder / "combined-newsqa-data-v1.json").write_text(json.dumps({"version": "1", "data": data}))


def write_quasar_t(folder, compressed=False):
    """The files of Quasar-T."""
    for split in ("train", "dev"):
        write_lines(folder / "questions" / f"{split}_questions.json", QUASAR_QUESTIONS, compressed)
        write_lines(folder / "contexts" / "short" / f"{split}_contexts.json", QUASAR_CONTEXTS, compressed)


def write_mrqa(folder):
    """A file of the MRQA shared task for each split."""
    for split in ("train", "dev"):
        write_lines(folder / split / "NewsQA.jsonl", MRQA, compressed=True)


def write_hub(folder):
    """A folder laid out like a data set on the hub."""
    for split in ("train", "validation"):
        write_lines(folder / f"{split}.jsonl", HUB)


WRITERS = {
    "squad": write_squad,
    "newsqa": write_newsqa,
    "quasar-t": write_quasar_t,
    "mrqa": write_mrqa,
    "hub": write_hub,
}
