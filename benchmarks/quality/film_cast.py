"""Questions about the cast of films in SQuAD 2.0's format, for the examples: `python -m benchmarks.quality.film_cast FOLDER`.

The plot summaries are those of Rotten Tomatoes, among the assets of `make env`.
A summary that says "Neha (Sushmita Sen)" answers "Who plays Neha?" and "Whom does Sushmita Sen play?". The texts and the names
are real, the questions are made from two templates. Half as many questions have no answer: they ask about somebody of another
film who is not in the text. Films are either in the training or in the development set.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.quality.export_folder import folder_and_texts
from gradalign.cli import places
from gradalign.cli.workload import assets
from gradalign.cli.workload.table import read_table

NAME = r"[A-Z][\w.'-]+(?: [A-Z][\w.'-]*)*"
CAST = re.compile(rf"({NAME}) \(({NAME})\)")
TEMPLATES = ("Who plays {}?", "Whom does {} play?")
SENTENCE_END = re.compile(r"(?<=[.!?\u2026\"]) +(?=[A-Z\"])|\n+")
MAX_WORDS = 50
DEV_SHARE = 0.25
SEED = 0


class Role(NamedTuple):
    """A character and the actor, as (name, first character in the text)."""

    character: tuple[str, int]
    actor: tuple[str, int]


def roles(text: str) -> list[Role]:
    """The cast that a text names, everybody once."""
    found = [Role((match[1], match.start(1)), (match[2], match.start(2))) for match in CAST.finditer(text)]
    found = [role for role in found if not role.actor[0].isupper()]  # the abbreviation of what stands before it
    seen: set[str] = set()
    once = []
    for role in found:
        names = {role.character[0], role.actor[0]}
        if not names & seen:
            once.append(role)
        seen |= names
    return once


def passages(plot: str) -> list[str]:
    """A plot cut between sentences into parts of at most `MAX_WORDS` words, or of one sentence that is longer."""
    parts: list[str] = []
    for sentence in filter(str.strip, SENTENCE_END.split(plot)):
        joined = f"{parts[-1]} {sentence}" if parts else sentence
        if parts and len(joined.split()) <= MAX_WORDS:
            parts[-1] = joined
        else:
            parts.append(sentence)
    return parts


def questions(title: str, text: str, others: Sequence[Role], rng: random.Random) -> list[dict[str, Any]]:
    """SQuAD's `qas` of one text.

    Args:
        title: for the ids.
        text: with the cast in it.
        others: of other films, for questions without an answer.
        rng: chooses among them.
    """
    cast = roles(text)
    asked = [(role, template) for role in cast for template in range(2)]
    absent = [role for role in others if role.character[0] not in text and role.actor[0] not in text]
    asked += [(role, rng.randrange(2)) for role in rng.sample(absent, min(len(cast), len(absent)))]
    qas = []
    for number, (role, template) in enumerate(asked):
        name, answer = (role.character, role.actor) if template == 0 else (role.actor, role.character)
        answers = [{"text": answer[0], "answer_start": answer[1]}] if number < 2 * len(cast) else []
        question = TEMPLATES[template].format(name[0])
        qas.append({"id": f"{title}-{number}", "question": question, "answers": answers, "is_impossible": not answers})
    return qas


def squad(films: Mapping[str, str], seed: int = SEED) -> dict[str, dict[str, Any]]:
    """The content of both files, from the titles and plots of films: "train" and "dev"."""
    rng = random.Random(seed)
    named = {title: [part for part in passages(plot) if roles(part)] for title, plot in sorted(films.items())}
    titles = [title for title, parts in named.items() if parts]
    rng.shuffle(titles)
    num_dev = round(DEV_SHARE * len(titles))
    content = {}
    for split, chosen in (("dev", titles[:num_dev]), ("train", titles[num_dev:])):
        everybody = [role for title in chosen for part in named[title] for role in roles(part)]
        articles = []
        for title in chosen:
            asked = [(part, questions(f"{title}-{i}", part, everybody, rng)) for i, part in enumerate(named[title])]
            articles.append({"title": title, "paragraphs": [{"context": part, "qas": qas} for part, qas in asked]})
        content[split] = {"version": "v2.0", "data": articles}
    return content


def plots() -> dict[str, str]:
    """The plot of every film, by its title."""
    rows = [row.values for row in read_table(assets.locate("rotten-tomatoes")).rows]
    return {row["movie_name"]: row["text"] for row in rows if row["category"] == "plot"}


def main(argv: list[str] | None = None) -> None:
    """Writes train-v2.0.json and dev-v2.0.json, and prints what they hold."""
    folder, films = folder_and_texts(argv, __doc__, plots)
    for split, content in squad(films).items():
        places.write_json(folder / f"{split}-v2.0.json", content)
        asked = [qa for article in content["data"] for part in article["paragraphs"] for qa in part["qas"]]
        impossible = sum(qa["is_impossible"] for qa in asked)
        print(f"{split}: {len(content['data'])} films, {len(asked)} questions, {impossible} of them without an answer")


if __name__ == "__main__":
    main()
