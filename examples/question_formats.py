"""Questions about a text, as their data sets are published: SQuAD, NewsQA, Quasar-T, the MRQA files, the hub's columns.

    FOLDER/train-v2.0.json, dev-v2.0.json                      SQuAD (v1.1 too)
    FOLDER/combined-newsqa-data-v1.json                        NewsQA, as its own tools combine it with the stories
    FOLDER/questions/, FOLDER/contexts/{short,long}/           Quasar-T: {train,dev}_questions.json and _contexts.json
    FOLDER/train/*.jsonl, FOLDER/dev/*.jsonl                   the MRQA 2019 files, among them NewsQA's answerable questions
    a name on the hub, such as rajpurkar/squad_v2              rows of id, question, context, answers; or a FOLDER like it

Files may be compressed (.gz).
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reading

from gradalign.cli.errors import CommandError

HUB_SPLITS = {"train": "train", "dev": "validation"}
COLUMNS = {"id", "question", "context", "answers"}
NEWSQA = "combined-newsqa-data-v1.json"
LAYOUTS = __doc__.split("\n\n")[1]


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        id: differs between the questions of a data set.
        text: the question.
        context: where the answer is looked for.
        answers: the accepted ones; none where the text does not answer the question.
        spans: where answers stand in the context, as (first, one past the last) character, for training.
    """

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def load(data: str, split: str, contexts: str = "short", passages: int = 20) -> list[Question]:
    """The questions of one split, in the order of the files.

    Args:
        data: a folder in one of the layouts above, the file of NewsQA, or a name on the hub.
        split: "train" or "dev".
        contexts: "short" or "long", the two sizes of Quasar-T's passages.
        passages: how many of Quasar-T's passages for a question are read, the best first.

    Raises:
        CommandError: the data have none of the layouts, or questions of "dev" have the same id.
    """
    questions = _load(data, split, contexts, passages)
    if split == "dev":  # predictions are compared by id
        twice = [id for id, times in Counter(question.id for question in questions).items() if times > 1]
        if twice:
            raise CommandError(
                f"--data: expected questions with different ids; got {len(twice)} ids twice or more, such as {twice[0]!r}; "
                "number them anew"
            )
    return questions


def _load(data: str, split: str, contexts: str, passages: int) -> list[Question]:
    path = Path(data)
    if newsqa := _first(path if path.name.startswith(NEWSQA) else path / NEWSQA):
        return list(_newsqa(_json(newsqa), split))
    if questions := _first(path / "questions" / f"{split}_questions.json"):
        found = _first(path / "contexts" / contexts / f"{split}_contexts.json")
        if found is None:
            raise CommandError(f"expected {split}_contexts.json in {path / 'contexts' / contexts}; got no such file")
        return list(_quasar_t(_lines(questions), _lines(found), passages))
    if files := sorted((path / split).glob("*.jsonl*")):
        return [question for file in files for question in _mrqa(_lines(file))]
    files = sorted(path.glob(f"{split}-v*.json*"))
    if len(files) > 1:
        raise CommandError(f"--data: expected one file of {split} in {path}; got {[file.name for file in files]}")
    return list(_squad(_json(files[0]))) if files else list(_hub(_rows(data, split)))


def _rows(data: str, split: str) -> Any:
    """Rows of a data set on the hub, or of a folder laid out like one there."""
    try:
        rows = reading.load_rows(data, HUB_SPLITS[split])
    except CommandError as error:
        raise CommandError(f"--data: expected one of\n{LAYOUTS}\n{error}") from error
    if missing := COLUMNS - set(rows.column_names):
        raise CommandError(
            f"--data: expected columns {sorted(COLUMNS)}; got {rows.column_names}, without {sorted(missing)}"
        )
    return rows


def _first(path: Path) -> Path | None:
    """The file, or its compressed form, or None."""
    candidates = (path, path.with_name(path.name + ".gz"))
    return next((file for file in candidates if file.is_file()), None)


def _open(path: Path) -> Any:
    # A byte order mark, which some editors write, is none of JSON.
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _json(path: Path) -> Any:
    with _open(path) as file:
        return json.load(file)


def _lines(path: Path) -> Iterator[Any]:
    with _open(path) as file:
        yield from (json.loads(line) for line in file if line.strip())


def _squad(content: Mapping[str, Any]) -> Iterator[Question]:
    """Articles of paragraphs of questions. `plausible_answers` of impossible questions are not answers."""
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = [] if qa.get("is_impossible") else qa["answers"]
                yield _from_starts(
                    qa["id"],
                    qa["question"],
                    paragraph["context"],
                    [answer["text"] for answer in answers],
                    [answer["answer_start"] for answer in answers],
                )


def _hub(rows: Iterable[Mapping[str, Any]]) -> Iterator[Question]:
    """SQuAD's columns on the hub: `answers` holds a list of texts and one of their starts, both empty without an answer."""
    for row in rows:
        answers = row["answers"]
        yield _from_starts(row["id"], row["question"], row["context"], answers["text"], answers["answer_start"])


def _from_starts(id: str, text: str, context: str, answers: list[str], starts: list[int]) -> Question:
    """A place where the answer does not stand trains nothing, as in BERT's own script; the answer counts in the evaluation."""
    spans = {
        (start, start + len(answer))
        for answer, start in zip(answers, starts, strict=True)
        if context[start : start + len(answer)] == answer
    }
    return Question(id, text.strip(), context, tuple(answers), tuple(sorted(spans)))


def _newsqa(content: Mapping[str, Any], split: str) -> Iterator[Question]:
    """One answer a question: the span on which the crowd agrees, or none. Questions it calls bad are left out."""
    for story in content["data"]:
        if story["type"] != split:
            continue
        for number, question in enumerate(story["questions"]):
            agreed = question["consensus"]
            if agreed.get("badQuestion"):
                continue
            spans = () if agreed.get("noAnswer") else (_trimmed(story["text"], agreed["s"], agreed["e"]),)
            answers = tuple(story["text"][first:last] for first, last in spans)
            yield Question(f"{story['storyId']}#{number}", question["q"].strip(), story["text"], answers, spans)


def _trimmed(text: str, first: int, last: int) -> tuple[int, int]:
    """A span without the white space that NewsQA leaves at its end."""
    return first, first + len(text[first:last].rstrip())


def _quasar_t(questions: Iterable[Any], contexts: Iterable[Any], passages: int) -> Iterator[Question]:
    """The passages found for a question, one a line. Answers are not marked: any occurrence of the answer trains."""
    ranked = {row["uid"]: [text for _, text in row["contexts"][:passages]] for row in contexts}
    for row in questions:
        context = "\n".join(ranked[row["uid"]])
        yield Question(
            row["uid"],
            row["question"].strip(),
            context,
            (row["answer"],),
            tuple(match.span() for match in _occurrences(row["answer"], context)),
        )


def _occurrences(answer: str, context: str) -> Iterator[re.Match[str]]:
    """Whole words, in any case."""
    return re.finditer(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", context, re.IGNORECASE)


def _mrqa(rows: Iterable[Any]) -> Iterator[Question]:
    """After a header, a line a context; the last character of a span belongs to it."""
    for row in rows:
        for qa in row.get("qas", ()):
            spans = {(first, last + 1) for found in qa["detected_answers"] for first, last in found["char_spans"]}
            yield Question(
                qa["qid"], qa["question"].strip(), row["context"], tuple(qa["answers"]), tuple(sorted(spans))
            )
