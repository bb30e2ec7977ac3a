"""The example trains decoders with every method, counts tokens over the step, and reports the perplexity of the model."""

from __future__ import annotations

import gzip
import math

import pytest
import torch
from support import tiny_models
from torch import nn

from gradalign.cli.errors import CommandError

SMALL = ["--steps=2", "--batch-size=4", "--micro-batches=4", "--lr=0.01", "--block-size=16", "--device=cpu"]


@pytest.fixture
def causal_lm(example):
    return example("causal_lm")


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Name of the architecture -> folder."""
    folder = tmp_path_factory.mktemp("decoders")
    return {name: tiny_models.save(folder / name, name, "AutoModelForCausalLM") for name in ("gpt2", "llama")}


@pytest.fixture
def files(tmp_path):
    """Options with a text file to train on and another to validate on."""
    for name, times in (("train", 8), ("validation", 2)):
        (tmp_path / f"{name}.txt").write_text("a cat sat.\na dog ran.\n" * times)
    return [f"--train={tmp_path / 'train.txt'}", f"--validation={tmp_path / 'validation.txt'}"]


@pytest.mark.parametrize("method", ["plain", "gradalign", "reptile", "fomaml", "sam"])
def test_every_method_trains(causal_lm, decoders, files, method):
    record = causal_lm.main([*SMALL, *files, f"--model={decoders['gpt2']}", "--method", method])
    (run,) = record["runs"][method]
    assert run["metrics"]["perplexity"] == pytest.approx(math.exp(run["metrics"]["loss"]))
    assert run["history"][-1]["align/passes"] == {"gradalign": 5, "sam": 8}.get(method, 4)


@pytest.mark.parametrize("options", [["--lora=2"], []], ids=["lora", "whole"])
def test_llama_trains(causal_lm, decoders, files, options):
    record = causal_lm.main([*SMALL, *files, f"--model={decoders['llama']}", *options])
    assert 1 < record["means"]["gradalign"]["perplexity"]["mean"] < 100


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_new_model_has_the_sizes_it_was_given(causal_lm, files, architecture):
    sizes = ["--layers=1", "--width=16", "--heads=4", "--vocabulary=260"]
    args = causal_lm.parse([*SMALL, *files, f"--scratch={architecture}", *sizes])
    tokenizer = causal_lm.new_tokenizer(["a cat sat"] * 9, args.vocabulary)
    config = causal_lm.make_model(args, tokenizer).config
    found = [config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.vocab_size]
    assert found == [1, 16, 4, 260]
    assert tokenizer.decode(tokenizer("ü cat")["input_ids"]) == "ü cat"
    record = causal_lm.main([*SMALL, *files, f"--scratch={architecture}", *sizes, "--steps=30", "--method=plain"])
    history = record["runs"]["plain"][0]["history"]
    assert history[-1]["loss"] < history[0]["loss"] - 1  # nats, of a text that repeats itself


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_lora_trains_its_adapters_alone(causal_lm, decoders, files, architecture):
    args = causal_lm.parse([*SMALL, *files, f"--model={decoders[architecture]}", "--lora=2"])
    model = causal_lm.make_model(args, tiny_models.tiny_tokenizer())
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {p.shape[0] for name, p in model.named_parameters() if "lora_A" in name} == {2}


def test_texts_are_packed_end_to_end(causal_lm):
    tokenizer = tiny_models.tiny_tokenizer()  # [CLS] text [SEP], and the end token
    (cls, sep, end, a, b, c) = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", "[END]", "a", "b", "c"])
    rows = causal_lm.packed(["ab", "c"], tokenizer, 5)
    assert rows == [[cls, a, b, sep, end], [cls, c, sep, end]]
    assert causal_lm.packed(["ab", "c"], tokenizer, 8) == [
        [cls, a, b, sep, end, cls, c, sep]
    ]  # end alone predicts nothing


def test_every_token_of_a_step_weighs_the_same(causal_lm, decoders, files):
    args = causal_lm.parse([*SMALL, *files, f"--model={decoders['gpt2']}", "--batch-size=2", "--micro-batches=2"])
    rows = [[5, 6, 7, 8], [9, 5]]
    (step,) = [next(causal_lm.steps_of(rows, 0, args, seed=0))]
    assert [micro_batch["step_targets"] for micro_batch in step] == [4, 4]
    grads = []
    for whole in (True, False):
        model = causal_lm.make_model(args, None).eval()
        if whole:  # one padded batch, and the mean over its four targets by transformers itself
            model(**causal_lm.batch_of(rows, 0)).loss.backward()
        else:
            aligner = causal_lm.training.METHODS["plain"](model, args, 0)
            aligner.backward(lambda b, m=model: causal_lm.loss_sum(m, b) / b["step_targets"], step, reduction="sum")
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*grads, atol=1e-6)


def test_a_run_sums_the_losses_of_a_step(causal_lm, decoders, files):
    record = causal_lm.main([*SMALL, *files, f"--model={decoders['gpt2']}", "--method=plain"])
    loss = record["runs"]["plain"][0]["history"][0]["loss"]
    assert loss == pytest.approx(
        math.log(len(tiny_models.tiny_tokenizer())), rel=0.1
    )  # of one token, not of one divided by 4


class Known(nn.Module):
    """Predicts token 1 with probability 3/4 and token 0 with 1/4, whatever came before."""

    def forward(self, input_ids):
        logits = torch.log(torch.tensor([0.25, 0.75])).expand(*input_ids.shape, 2)
        return type("Output", (), {"logits": logits})


def test_perplexity_of_a_known_model(causal_lm):
    found = causal_lm.evaluate(Known(), [[0, 1, 1, 0], [0, 1]], 0, torch.device("cpu"))
    loss = -(3 * math.log(0.75) + math.log(0.25)) / 4  # targets 1, 1, 0 and 1; padding is no target
    assert found == pytest.approx({"loss": loss, "perplexity": math.exp(loss)})


def test_columns_and_empty_texts(causal_lm, tmp_path):
    (tmp_path / "a.csv").write_text('body\n"one"\n" "\n"two"\n')
    args = causal_lm.parse([f"--train={tmp_path / 'a.csv'}", "--text-column=body"])
    assert causal_lm.load_texts(args.train, "train", args) == (["one", "two"], 1)
    args.text_column = "text"
    with pytest.raises(CommandError, match="--text-column: expected one of body; got 'text'"):
        causal_lm.load_texts(args.train, "train", args)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_one_text(causal_lm, tmp_path, name):
    text = b"one\n\ntwo\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    args = causal_lm.parse([f"--train={tmp_path / name}"])
    found, left_out = causal_lm.load_texts(args.train, "train", args)
    assert ([text.split() for text in found], left_out) == ([["one", "two"]], 0)


@pytest.mark.parametrize(
    ("name", "validation", "words"),
    [
        ("b.jsonl", '{"text": 1}\n', "--text-column: expected texts in 'text' of .*; got 1"),
        ("b.csv", 'text\n" "\n" "\n', "expected rows for texts, validation; got none that can be used, 2 without"),
    ],
)
def test_columns_without_texts_are_refused_before_training(causal_lm, decoders, tmp_path, name, validation, words):
    (tmp_path / "a.csv").write_text("text\na cat sat\nNA\n")
    (tmp_path / name).write_text(validation)
    files = [f"--train={tmp_path / 'a.csv'}", f"--validation={tmp_path / name}"]
    with pytest.raises(CommandError, match=words):
        causal_lm.main([*SMALL, *files, f"--model={decoders['gpt2']}"])


def test_a_perplexity_that_no_float_holds_is_infinite(causal_lm):
    class Wrong(Known):
        def forward(self, input_ids):
            return type("Output", (), {"logits": torch.tensor([0.0, -1000.0]).expand(*input_ids.shape, 2)})

    assert causal_lm.evaluate(Wrong(), [[0, 1]], 0, torch.device("cpu")) == {"loss": 1000, "perplexity": math.inf}
    found = causal_lm.evaluate(Known(), [[0, 1]], 0, torch.device("cpu"))
    assert math.isfinite(found["perplexity"])


def test_rows_that_are_too_long_for_the_model_are_refused(causal_lm, decoders, files):
    with pytest.raises(CommandError, match="--block-size: expected at most 96, the positions of the model; got 128"):
        causal_lm.main(
            [*SMALL, *files, f"--model={decoders['gpt2']}", "--block-size=128", "--batch-size=2", "--micro-batches=2"]
        )


def test_sizes_without_a_new_model_are_refused(causal_lm, capsys):
    with pytest.raises(SystemExit):
        causal_lm.parse(["--train=a.txt", "--layers=3"])
    assert "--layers: expected only with --scratch; got no --scratch" in capsys.readouterr().err
