import itertools

import pytest
import torch
from support.toy_demo import StepCounter, toy_model

from gradalign.cli.demo.reviews.seed import SeedData, check_aligner, train_seed
from gradalign.cli.demo.reviews.settings import Settings
from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import Corpus, Snippet

SETTINGS = Settings(
    model="toy",
    data="toy",
    csv=None,
    text_column="text",
    label_column="label",
    group_column=None,
    train_size=60,
    test_size=30,
    label_noise=0.0,
    steps=4,
    seeds=1,
    first_seed=0,
    lr=0.05,
    warmup=1,
    k=4,
    batch=2,
    objective="dot",
    weight=0.001,
    normalize="direction",
    estimator="split",
    probe_fraction=0.25,
    difference="forward",
    radius=None,
    device="cpu",
)


class ToyTokenizer:
    """Takes texts of numbers, which are the token ids."""

    pad_token_id = 0

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[int(token) for token in text.split()][:max_length] for text in texts]}


def corpus():
    """Class 1 has the larger tokens; the last token of a text is its group."""
    snippets = [Snippet(f"{1 + i % 7 + 10 * (i % 2)} {i % 10}", i % 2, str(i % 10)) for i in range(120)]
    return Corpus("toy", ["a", "b"], snippets)


def seed_data(seed=0):
    return SeedData(corpus(), ToyTokenizer(), SETTINGS, seed, torch.device("cpu"))


def tokens(micro_batches):
    return [batch["input_ids"].tolist() for batch in micro_batches]


def groups(micro_batches):
    return {row[-1] for batch in tokens(micro_batches) for row in batch}


def test_a_step_is_k_micro_batches_and_follows_the_seed():
    first, again, other = (list(itertools.islice(seed_data(seed).steps(), 3)) for seed in (1, 1, 2))
    assert [len(step) for step in first] == [4, 4, 4]
    assert {len(batch["labels"]) for step in first for batch in step} == {2}
    assert [tokens(step) for step in first] == [tokens(step) for step in again]
    assert [tokens(step) for step in first] != [tokens(step) for step in other]


def test_alignment_is_measured_on_groups_that_training_does_not_see():
    data = seed_data()
    seen = set().union(*(groups(step) for step in itertools.islice(data.steps(), 30)))
    assert len(data.alignment_batches()) == 15  # 30 test texts in micro-batches of 2
    assert not seen & groups(data.alignment_batches())
    assert data.counts == {
        "train": 60,
        "train_groups": len(seen),
        "test": 30,
        "test_groups": len(groups(data.test_batches)),
    }


def test_training_a_seed_returns_its_whole_record_and_keeps_the_model():
    progress = StepCounter()
    model = toy_model()
    before = [p.clone() for p in model.parameters()]
    record = train_seed(SETTINGS, 0, model, seed_data(), progress)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert progress.done == 4 + record["further_adamw_steps"]
    assert progress.added == record["further_adamw_steps"]
    assert record["adamw"]["alignment"] != record["alignment_before"]
    assert record["gradalign"]["accuracies"][-1][0] == 4


def test_options_that_gradalign_refuses_are_reported():
    settings = Settings(**{**vars(SETTINGS), "probe_fraction": 0.0})
    with pytest.raises(CommandError, match="probe_fraction"):
        check_aligner(settings, toy_model())
