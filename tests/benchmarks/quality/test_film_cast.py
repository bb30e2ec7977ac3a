"""The questions about casts are SQuAD's format, true to the text, and split by film."""

import json
import random

import pytest

from benchmarks.quality import film_cast
from gradalign.cli.errors import CommandError

PLOT = (
    "Neha (Sushmita Sen) trains three men. They rob the bank of Mr. Rajput (Amitabh Bachchan), and Neha flees.\n\n"
    "The Museum of Art (MASP) is near. Neha (Rani) is back."
)
OTHERS = [
    film_cast.Role(("Harry Potter", 0), ("Daniel Radcliffe", 14)),
    film_cast.Role(("Neha", 0), ("Someone Else", 6)),
]


def test_roles_are_names_before_names_in_brackets_once_each():
    assert film_cast.roles(PLOT) == [
        film_cast.Role(("Neha", 0), ("Sushmita Sen", 6)),
        film_cast.Role(("Mr. Rajput", PLOT.index("Mr.")), ("Amitabh Bachchan", PLOT.index("Amitabh"))),
    ]


def test_questions_are_answered_where_they_say_and_the_others_nowhere():
    asked = film_cast.questions("film", PLOT, OTHERS, random.Random(0))
    answered = [qa for qa in asked if not qa["is_impossible"]]
    assert [(qa["question"], qa["answers"][0]["text"]) for qa in answered] == [
        ("Who plays Neha?", "Sushmita Sen"),
        ("Whom does Sushmita Sen play?", "Neha"),
        ("Who plays Mr. Rajput?", "Amitabh Bachchan"),
        ("Whom does Amitabh Bachchan play?", "Mr. Rajput"),
    ]
    for qa in answered:
        (answer,) = qa["answers"]
        assert PLOT[answer["answer_start"] :].startswith(answer["text"])
    # Somebody with a name of this text, such as another Neha, would have an answer.
    (impossible,) = [qa for qa in asked if qa["is_impossible"]]
    assert impossible["question"] in {"Who plays Harry Potter?", "Whom does Daniel Radcliffe play?"}
    assert impossible["answers"] == []
    assert len({qa["id"] for qa in asked}) == 5


def test_plots_are_cut_between_sentences(monkeypatch):
    monkeypatch.setattr(film_cast, "MAX_WORDS", 5)
    assert film_cast.passages("One two. Three four? Five six seven.\n\nEight nine ten eleven twelve thirteen.") == [
        "One two. Three four?",
        "Five six seven.",
        "Eight nine ten eleven twelve thirteen.",
    ]


def test_no_film_is_in_both_files():
    films = {f"film {i}": f"{name} ({name} Smith) laughs." for i, name in enumerate(["Ann", "Bob", "Carl", "Dora"])}
    content = film_cast.squad({**films, "without": "Nobody is named."})
    titles = {split: {article["title"] for article in part["data"]} for split, part in content.items()}
    assert (len(titles["dev"]), len(titles["train"])) == (1, 3)
    assert titles["dev"] | titles["train"] == set(films)
    assert film_cast.squad(films) == film_cast.squad(films)


def test_the_files_that_are_written(asset, tmp_path, capsys):
    asset("rotten-tomatoes")
    film_cast.main([str(tmp_path)])
    assert capsys.readouterr().out == (
        "dev: 44 films, 357 questions, 119 of them without an answer\n"
        "train: 130 films, 1002 questions, 334 of them without an answer\n"
    )
    for split in ("train", "dev"):
        content = json.loads((tmp_path / f"{split}-v2.0.json").read_text())
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    for answer in qa["answers"]:
                        start = answer["answer_start"]
                        assert paragraph["context"][start : start + len(answer["text"])] == answer["text"]


def test_a_missing_asset_ends_the_command(monkeypatch, tmp_path):
    def missing(name):
        raise CommandError("got no package")

    monkeypatch.setattr(film_cast.assets, "locate", missing)
    with pytest.raises(SystemExit, match="error: got no package"):
        film_cast.main([str(tmp_path)])
