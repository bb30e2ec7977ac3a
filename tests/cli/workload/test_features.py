"""Features are those of the encoder, in the order asked for, and are computed once."""

from __future__ import annotations

import pytest
import torch

from gradalign.cli.workload import features as module
from gradalign.cli.workload.features import encode, features, standardised
from gradalign.cli.workload.model import load_pretrained

TEXTS = ["A wonderful film.", "A long, dull and predictable mess of a film.", "Dull."]


@pytest.fixture
def bert(asset):
    return asset("bert-tiny")


def test_features_are_the_mean_of_the_last_states(bert):
    encoder, tokenizer = load_pretrained("bert-tiny")
    found = encode(TEXTS, "bert-tiny")
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = encoder.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(row, states.mean(0), atol=1e-5, rtol=1e-5)


def test_they_are_computed_once(bert, tmp_path, monkeypatch):
    done = []
    first = features([*TEXTS, TEXTS[0]], "bert-tiny", tmp_path, done.append)
    assert done == [3]
    monkeypatch.setattr(module, "encode", lambda *args: pytest.fail("computed again"))
    again = features(TEXTS[::-1], "bert-tiny", tmp_path)
    assert torch.equal(again.of([TEXTS[2], TEXTS[0]]), first.of(TEXTS)[[2, 0]])
    monkeypatch.setattr(module, "encode", lambda texts, *args: torch.zeros(len(texts), 2))
    other = features(TEXTS[:2], "bert-tiny", tmp_path)
    assert other.rows.shape == (2, 2)
    assert len(list(tmp_path.iterdir())) == 2


def test_no_texts_are_an_error(bert):
    with pytest.raises(ValueError, match="features: expected texts; got none"):
        encode([], "bert-tiny")


def test_standardised_takes_mean_and_deviation_of_the_first():
    train, other = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[1.0, 6.0]])
    first, second = standardised(train, other)
    torch.testing.assert_close(first, torch.tensor([[-(0.5**0.5), 0.0], [0.5**0.5, 0.0]]))
    torch.testing.assert_close(second, torch.tensor([[0.0, 1e6]]))
