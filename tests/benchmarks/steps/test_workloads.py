from __future__ import annotations

import pytest
import torch

from benchmarks.errors import CommandError
from benchmarks.steps import models, text, workloads
from benchmarks.steps.workloads import Workload, load

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("workload", "name"),
    [
        (Workload("mlp", 8, 4, 100_000_000), "mlp-1e8, k=8, batch 4"),
        (Workload("minilm", 8, 16, 64), "minilm-64, k=8, batch 16"),
        (Workload("minilm", 8, 16, 64, "bf16"), "minilm-64, k=8, batch 16, bf16"),
    ],
)
def test_names(workload, name):
    assert workload.name == name
    assert workload.as_dict()["name"] == name


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5, 1e6])
def test_mlps_have_about_the_number_of_parameters_they_say(size):
    loaded = load(Workload("mlp", 2, 3, int(size)), CPU, seed=0)
    assert loaded.numel == pytest.approx(size, rel=0.15)
    assert loaded.parameter_bytes == 4 * loaded.numel
    assert [len(step) for step in loaded.steps] == [2] * workloads.NUM_STEPS
    assert loaded.steps[0][0].shape[0] == 3


def test_the_same_seed_is_the_same_workload():
    first, second = (load(Workload("resnet", 2, 2, 8), CPU, seed=3) for _ in range(2))
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert torch.equal(first.steps[1][0][0], second.steps[1][0][0])


def test_the_resnet_has_batchnorm_in_training_mode():
    loaded = load(Workload("resnet", 2, 2, 8), CPU, seed=0)
    norms = [m for m in loaded.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 12
    loaded.loss(loaded.model, loaded.steps[0][0]).backward()
    assert norms[0].num_batches_tracked == 1


def test_low_precision_covers_parameters_and_inputs():
    loaded = load(Workload("mlp", 2, 2, 1000, "bf16"), CPU, seed=0)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.steps[0][0].dtype == torch.bfloat16
    assert loaded.loss(loaded.model, loaded.steps[0][0]).dtype == torch.float32


def test_eager_attention_is_the_fused_one():
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(models.causal_attention(q, k, v), fused)


@pytest.mark.parametrize(("name", "low", "high"), [("decoder-100m", 95e6, 125e6), ("decoder-1b", 0.95e9, 1.2e9)])
def test_decoders_have_the_size_they_say(name, low, high):
    with torch.device("meta"):
        assert low < sum(p.numel() for p in models.decoder(name, 64, eager=False).parameters()) < high


def test_a_decoder_does_not_look_ahead():
    model = models.Decoder(16, 2, 2, tokens=6, eager=True).eval()
    ids = torch.arange(6)[None]
    other = ids.clone()
    other[0, 4:] = 9
    torch.testing.assert_close(model(ids)[:, :4], model(other)[:, :4])


def test_an_unknown_model_is_named():
    with pytest.raises(CommandError, match="workload: expected one of linear, mlp, .*; got 'gpt'"):
        load(Workload("gpt", 2, 2, 2), CPU, seed=0)


def test_texts_are_real_rows_of_the_exact_length_and_both_classes(asset):
    asset("rotten-tomatoes")
    asset("bert-tiny")
    tokenizer = text.pretrained.load_pretrained("bert-tiny")[1]
    rows = text.labelled(tokenizer, 40, 6, seed=0)
    assert [len(ids) for ids, _ in rows] == [40] * 6
    assert [label for _, label in rows] == [0, 1, 0, 1, 0, 1]
    assert len({tuple(ids) for ids, _ in rows}) == 6
    assert " the " in " ".join(tokenizer.decode(ids) for ids, _ in rows)


def test_an_encoder_is_pretrained_and_in_training_mode(asset):
    asset("rotten-tomatoes")
    asset("bert-tiny")
    loaded = load(Workload("bert-tiny", 2, 2, 16), CPU, seed=0, eager=True)
    assert loaded.data == "Rotten Tomatoes, pretrained"
    assert loaded.model.training
    assert loaded.model.encoder.config._attn_implementation == "eager"
    assert loaded.steps[0][0]["input_ids"].shape == (2, 16)
    assert float(loaded.loss(loaded.model, loaded.steps[0][0])) > 0
