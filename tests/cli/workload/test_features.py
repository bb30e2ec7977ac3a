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


@pytest.fixture
def encoded(monkeypatch):
    """The numbers of texts that were encoded; the features are made up."""
    calls = []

    def encode(texts, model, progress):
        calls.append(len(texts))
        return torch.arange(2.0 * len(texts)).reshape(-1, 2)

    monkeypatch.setattr(module, "encode", encode)
    return calls


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no tensor"),
        cut_short,
        lambda path: torch.save(torch.zeros(7, 2), path),
        lambda path: torch.save({"rows": 1}, path),
    ],
    ids=["empty", "text", "cut short", "of other texts", "no tensor"],
)
def test_a_broken_file_is_computed_again_and_replaced(spoil, encoded, tmp_path):
    first = features(TEXTS, "bert-tiny", tmp_path)
    (path,) = tmp_path.iterdir()
    spoil(path)
    with pytest.warns(UserWarning, match=f"features: expected a file {path.name} .*; got .*; computed again; "):
        again = features(TEXTS, "bert-tiny", tmp_path)
    assert torch.equal(again.rows, first.rows)
    assert torch.equal(features(TEXTS, "bert-tiny", tmp_path).rows, first.rows)
    assert encoded == [3, 3]


def test_a_folder_that_cannot_be_written_costs_no_features(encoded, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="got NotADirectoryError: .*; set GRADALIGN_CACHE_DIR to a folder"):
        found = features(TEXTS, "bert-tiny", tmp_path / "file" / "features")
    assert found.of(TEXTS).shape == (3, 2)


def test_neither_does_a_user_without_a_home(encoded, monkeypatch):
    def nowhere():
        raise FileNotFoundError("there is no home folder")

    monkeypatch.setattr(module.cache, "directory", nowhere)
    with pytest.warns(UserWarning, match="there is no home folder") as told:
        features(TEXTS, "bert-tiny")
    assert len({str(warning.message) for warning in told}) == 1  # which Python shows once


def test_no_texts_are_an_error(bert):
    with pytest.raises(ValueError, match="features: expected texts; got none"):
        encode([], "bert-tiny")


def test_standardised_takes_mean_and_deviation_of_the_first():
    train, other = torch.tensor([[0.0, 5.0], [2.0, 5.0]]), torch.tensor([[1.0, 6.0]])
    first, second = standardised(train, other)
    torch.testing.assert_close(first, torch.tensor([[-(0.5**0.5), 0.0], [0.5**0.5, 0.0]]))
    torch.testing.assert_close(second, torch.tensor([[0.0, 1e6]]))
