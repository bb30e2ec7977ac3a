"""Every published format of question answering becomes the same questions."""

import json
import re

import pytest
from support import question_rows as rows

from gradalign.cli.errors import CommandError


@pytest.fixture
def formats(example):
    return example("question_formats")


@pytest.mark.parametrize("layout", ["squad", "hub"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_squad_and_its_columns_on_the_hub(formats, layout, split, tmp_path):
    rows.WRITERS[layout](tmp_path)
    first, second = formats.load(str(tmp_path), split)
    assert (first.id, first.text, first.context) == ("1", rows.QUESTION, rows.TEXT)
    assert (first.answers, first.spans) == (("a red cat", "red cat"), ((8, 17), (10, 17)))
    # An answer that is only plausible is none.
    assert (second.id, second.text, second.answers, second.spans) == ("2", rows.IMPOSSIBLE, (), ())


@pytest.mark.parametrize("split", ["train", "dev"])
def test_newsqa_has_one_answer_by_consensus_and_no_bad_question(formats, split, tmp_path):
    rows.write_newsqa(tmp_path)
    for data in (tmp_path, tmp_path / "combined-newsqa-data-v1.json"):
        first, second = formats.load(str(data), split)
        assert (first.text, first.answers, first.spans) == (rows.QUESTION, ("red cat.",), ((10, 18),))
        assert (second.text, second.answers, second.spans) == (rows.IMPOSSIBLE, (), ())
        assert first.id != second.id


@pytest.mark.parametrize("compressed", [False, True])
def test_quasar_t_joins_the_best_passages_and_finds_whole_words(formats, compressed, tmp_path):
    rows.write_quasar_t(tmp_path, compressed)
    first, second = formats.load(str(tmp_path), "dev", passages=2)
    assert first.context == "A Red Cat sat .\nNo redcat , a red cat ."
    assert [first.context[a:b] for a, b in first.spans] == ["Red Cat", "red cat"]
    assert (first.id, first.answers) == ("s1q1", ("red cat",))
    assert (second.answers, second.spans) == (("horse",), ())
    assert formats.load(str(tmp_path), "dev", passages=3)[0].context.endswith("\nA dog .")


def test_the_last_character_of_a_span_of_mrqa_belongs_to_it(formats, tmp_path):
    rows.write_mrqa(tmp_path)
    (question,) = formats.load(str(tmp_path), "train")
    assert (question.id, question.answers) == ("1", ("cat", "the cat"))
    assert [question.context[a:b] for a, b in question.spans] == ["cat", "cat"]


def test_passages_that_are_not_there_are_named(formats, tmp_path):
    rows.write_quasar_t(tmp_path)
    with pytest.raises(CommandError, match=r"expected train_contexts.json in .*long; got no such file"):
        formats.load(str(tmp_path), "train", contexts="long")


def test_two_versions_of_squad_in_one_folder_are_an_error(formats, tmp_path):
    rows.write_squad(tmp_path)
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(rows.SQUAD))
    message = "--data: expected one file of dev in .*; got ['dev-v1.1.json', 'dev-v2.0.json']"
    with pytest.raises(CommandError, match=message.replace("[", r"\[").replace("]", r"\]")):
        formats.load(str(tmp_path), "dev")


def test_a_folder_of_something_else_is_told_the_layouts(formats, tmp_path):
    (tmp_path / "notes.md").write_text("none")
    with pytest.raises(CommandError, match=re.escape("combined-newsqa-data-v1.json")):
        formats.load(str(tmp_path), "train")


def test_missing_columns_are_named(formats, tmp_path):
    for split in ("train", "validation"):
        rows.write_lines(tmp_path / f"{split}.jsonl", [{"id": "1", "question": "?", "context": "."}])
    with pytest.raises(CommandError, match=r"expected columns .*; got .*, without \['answers'\]"):
        formats.load(str(tmp_path), "train")


def test_a_file_is_not_taken_for_both_splits(formats, tmp_path):
    rows.write_lines(tmp_path / "qa.jsonl", rows.HUB)
    for split in ("train", "dev"):
        with pytest.raises(CommandError, match=r"expected a folder or a hub name, .*; got .*qa.jsonl, a file"):
            formats.load(str(tmp_path / "qa.jsonl"), split)


def test_a_byte_order_mark_is_none_of_json(formats, tmp_path):
    rows.write_squad(tmp_path)
    path = tmp_path / "dev-v2.0.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert formats.load(str(tmp_path), "dev") == formats.load(str(tmp_path), "train")


def test_questions_of_the_evaluation_have_ids_of_their_own(formats, tmp_path):
    for split in ("train", "validation"):
        rows.write_lines(tmp_path / "data" / f"{split}.jsonl", rows.HUB + rows.HUB[:1])
    assert len(formats.load(str(tmp_path / "data"), "train")) == 3
    with pytest.raises(
        CommandError, match="--data: expected questions with different ids; got 1 ids twice or more, such as '1'"
    ):
        formats.load(str(tmp_path / "data"), "dev")


def test_a_start_where_the_answer_does_not_stand_trains_nothing(formats, tmp_path):
    row = {**rows.HUB[0], "answers": {"text": ["a red cat", "red cat"], "answer_start": [8, 11]}}
    rows.write_lines(tmp_path / "train.jsonl", [row])
    (question,) = formats.load(str(tmp_path), "train")
    assert question.spans == ((8, 17),)
    assert question.answers == ("a red cat", "red cat")
