from dataclasses import replace

import pytest
import torch
from support.toy_sites import SETTINGS, toy_features, toy_texts

from gradalign.cli.errors import CommandError


@pytest.fixture(scope="module")
def data():
    texts = toy_texts()
    return texts.of_seed(toy_features(texts.distinct), 3)


def agreement(column, labels):
    return float(((column > 0) == (labels > 0.5)).double().mean())


def test_at_each_site_its_own_sentence_tells_the_label(data):
    for site, (x, y) in enumerate(data.train):
        assert len(y) == SETTINGS.texts
        assert agreement(x[:, site], y) > 0.9
        assert 0.25 < agreement(x[:, 1 - site], y) < 0.75


def test_in_the_test_every_sentence_is_a_coin_and_points_say_which_side(data):
    x, y = data.test
    assert len(y) == SETTINGS.held_out * 3 // 2
    for site in range(2):
        assert 0.25 < agreement(x[:, site], y) < 0.75
        assert torch.equal(data.points[:, site] > 0, x[:, site] > 0)


def test_the_control_has_the_same_texts_in_other_micro_batches(data):
    def rows(batches):
        return sorted(torch.cat([torch.cat([x, y[:, None]], 1) for x, y in batches]).tolist())

    assert rows(data.mixed) == rows(data.train)
    assert [len(y) for _, y in data.mixed] == [len(y) for _, y in data.train]
    (x, y), _ = data.mixed
    assert agreement(x[:, 0], y) < 0.9


def test_a_seed_is_always_the_same_split_and_another_one_is_not(data):
    texts = toy_texts()
    kept = toy_features(texts.distinct)
    assert torch.equal(texts.of_seed(kept, 3).test[0], data.test[0])
    assert not torch.equal(texts.of_seed(kept, 4).test[0], data.test[0])


def test_more_texts_than_there_are_are_refused_before_any_is_encoded():
    with pytest.raises(CommandError, match="--texts, --held-out: expected a sum of at most 125; got 130; take fewer"):
        toy_texts(replace(SETTINGS, texts=90))
