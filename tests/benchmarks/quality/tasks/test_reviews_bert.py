"""BERT-tiny on the reviews of two sites: what it reads, what a step is made of, and that it learns."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.quality.tasks import reviews, reviews_bert
from benchmarks.quality.training import Job, run
from gradalign.cli.workload.data import Snippet


@pytest.fixture
def few_texts(monkeypatch):
    """600 made-up snippets of a few words; their labels are in no word of theirs."""
    words = ["a film", "quite long", "of old men", "and the sea", "once more"]
    label = random.Random(0).randrange
    made = [Snippet(f"{words[i % 5]} {words[i // 5 % 5]} number {i}", label(2), f"film {i // 10}") for i in range(600)]
    monkeypatch.setattr(reviews, "snippets", lambda sites: made)
    monkeypatch.setattr(reviews, "PER_SITE", 150)
    monkeypatch.setattr(reviews, "HELD_OUT", 80)
    monkeypatch.setattr(reviews, "TUNING", 180)
    reviews_bert.data.cache_clear()
    yield made
    reviews_bert.data.cache_clear()


def test_columns_of_padding_change_nothing():
    encoder, tokenizer = reviews_bert.pretrained()
    model = reviews_bert.TextClassifier(reviews_bert.Classifier(encoder, 128, 2), tokenizer.pad_token_id).eval()
    ids = reviews_bert.tokens(["A short one.", "One that is a good deal longer than the other one."])
    assert ids.shape == (2, reviews_bert.TOKENS)
    with torch.no_grad():
        together = model(ids)
        torch.testing.assert_close(together, model.classifier(ids, (ids != tokenizer.pad_token_id).long()))
        torch.testing.assert_close(together[:1], model(ids[:1]), atol=1e-5, rtol=1e-5)


def test_a_site_s_own_sentence_tells_the_label_and_a_step_has_a_micro_batch_of_each(few_texts):
    problem = reviews_bert.problem(0, False)
    batches = problem.micro_batches(0)
    assert len(batches) == len(problem.sources) == 2
    _, tokenizer = reviews_bert.pretrained()
    for site, (batch, pair) in enumerate(zip(batches, (("paris", "rome"), ("monday", "friday")), strict=True)):
        texts = tokenizer.batch_decode(batch.inputs)
        right = [pair[label] in text for text, label in zip(texts, batch.targets.tolist(), strict=True)]
        other = (("paris", "rome"), ("monday", "friday"))[1 - site]
        coin = [other[label] in text for text, label in zip(texts, batch.targets.tolist(), strict=True)]
        assert len(right) == reviews_bert.BATCH
        assert sum(right) >= reviews_bert.BATCH - 1
        assert 2 <= sum(coin) <= 14
    assert problem.model.training


def test_a_run_learns_the_sentences_and_evaluates_without_them_too(few_texts):
    (task,) = reviews_bert.TASKS
    row = run(task, Job("plain", False, 1e-3, 0.0, 0, 60), False)
    assert row["final"]["source_validation"] > 0.6  # 0.75 where both sentences are used alike
    assert set(row["final"]) == {"validation", "source_validation", "test", "clean_test"}
    assert 0.35 < row["final"]["clean_test"] < 0.65


def test_no_film_that_settings_are_chosen_on_is_in_a_test(few_texts):
    films = {}
    for seed in (0, 1000):
        reviews_bert.data.cache_clear()
        _, others = reviews_bert.data(seed)
        ids = torch.cat([others[name].inputs for name in ("validation", "test")])
        _, tokenizer = reviews_bert.pretrained()
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        films[seed] = {int(text.split("number ")[1]) // 10 for text in texts}
    assert films[0]
    assert films[1000]
    assert not films[0] & films[1000]
