"""Headlines are learnt with every method and architecture; each token of a step counts the same; ROUGE by hand."""

import math

import pytest
import torch
from support.headline_rows import write_gigaword
from support.tiny_models import save, tiny_tokenizer

METHODS = ["plain", "gradalign", "reptile", "fomaml", "sam"]
SMALL = ["--batch-size=2", "--micro-batches=2", "--max-length=24", "--max-title-length=8", "--beams=2"]
HALF = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
SIZES = {
    "t5": {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.0,
    },
    "bart": {"d_model": 16, **{f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in HALF.items()}},
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


@pytest.fixture
def summarization(example):
    return example("summarization")


@pytest.fixture
def arguments(tmp_path):
    """Options for a tiny model of an architecture on a few pairs."""

    def make(architecture, *options):
        head = "AutoModel" if architecture == "bert" else "AutoModelForSeq2SeqLM"
        model = save(tmp_path / architecture, architecture, head, **SIZES[architecture])
        write_gigaword(tmp_path / "gigaword")
        return ["--model", model, "--data", str(tmp_path / "gigaword"), *SMALL, *options]

    return make


def test_every_method_trains_on_the_same_steps(summarization, arguments, capsys):
    record = summarization.main(arguments("t5", "--steps=3", "--lr=0.01", "--method", *METHODS))
    losses = {method: [row["loss"] for row in runs[0]["history"]] for method, runs in record["runs"].items()}
    assert list(losses) == METHODS
    # Reptile and FOMAML see the second micro-batch after a step on the first.
    assert (
        losses["plain"][0] == losses["gradalign"][0] == losses["sam"][0] != losses["reptile"][0] == losses["fomaml"][0]
    )
    assert len({found[-1] for found in losses.values()}) == len(METHODS)
    assert all(math.isfinite(loss) for found in losses.values() for loss in found)
    assert set(record["means"]["sam"]) == {"loss", "ROUGE-1", "ROUGE-2", "ROUGE-L"}
    assert "3 pairs; development: 3, of which the first 8 words" in capsys.readouterr().out


@pytest.mark.parametrize("architecture", ["bart", "bert"])
def test_every_architecture_runs(summarization, arguments, architecture):
    record = summarization.main(arguments(architecture, "--steps=1", "--dev-limit=2", "--train-limit=2"))
    (run,) = record["runs"]["gradalign"]
    assert math.isfinite(run["history"][0]["loss"])
    assert math.isfinite(run["metrics"]["loss"])


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_new_model_has_a_tokenizer_of_its_own(summarization, tmp_path, architecture):
    write_gigaword(tmp_path)
    sizes = ["--layers=1", "--width=16", "--heads=2", "--vocabulary=300"]
    argv = ["--data", str(tmp_path), *SMALL, "--scratch", architecture, *sizes, "--steps=1", "--method=plain"]
    args = summarization.parse(argv)
    texts = [text for pair in summarization.load(args.data, "train")[0] for text in pair]
    tokenizer = summarization.make_tokenizer(args, texts)
    model = summarization.make_model(args, tokenizer)
    assert (model.config.model_type, model.config.d_model, model.config.vocab_size) == (
        architecture,
        16,
        len(tokenizer),
    )
    (tokens,) = tokenizer(["c a t s"])["input_ids"]
    assert tokens[-1] == tokenizer.eos_token_id == model.config.eos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == "c a t s"
    (run,) = summarization.main(argv)["runs"]["plain"]
    # before training every token is about equally likely
    assert run["metrics"]["loss"] == pytest.approx(math.log(len(tokenizer)), rel=0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers=3"], "--layers: expected only with --scratch; got --model google-t5/t5-small"),
        (["--scratch=t5", "--width=10"], "--heads: expected a divisor of --width; got 4 and 10"),
    ],
)
def test_sizes_that_do_not_fit(summarization, options, message, capsys):
    with pytest.raises(SystemExit):
        summarization.parse(["--data=none", *options])
    assert message in capsys.readouterr().err


def test_it_learns_headlines_by_heart(summarization, arguments):
    options = ["--method=plain", "--steps=60", "--lr=0.03", "--weight-decay=0", "--batch-size=2"]
    (run,) = summarization.main(arguments("bert", *options))["runs"]["plain"]
    assert run["metrics"]["ROUGE-1"] == run["metrics"]["ROUGE-L"] == 100
    assert run["metrics"]["loss"] < 0.5


def test_every_token_of_a_step_counts_the_same(summarization, arguments):
    args = summarization.parse(arguments("t5"))
    tokenizer = tiny_tokenizer()
    model = summarization.make_model(args, tokenizer)
    pairs = [summarization.Pair("one", "a"), summarization.Pair("two", "a b c d")]
    rows = summarization.tokens_of(pairs, tokenizer, 0, args)
    batches = [summarization.padded([row], tokenizer) for row in rows]
    counts = [summarization.num_tokens(batch) for batch in batches]
    assert counts == [3, 6]
    sums = [summarization.summed_loss(model, batch) for batch in batches]
    whole = model(**summarization.padded(rows, tokenizer)).loss  # the mean over all tokens
    torch.testing.assert_close(sum(sums) / 9, whole)
    assert summarization.token_loss(model, rows, tokenizer, args.device) == pytest.approx(whole.item())


def test_the_loss_of_a_step_is_the_mean_over_its_tokens(summarization, arguments):
    argv = arguments("t5", "--batch-size=3", "--micro-batches=3", "--steps=1", "--method=plain")
    (run,) = summarization.main(argv)["runs"]["plain"]
    args, tokenizer = summarization.parse(argv), tiny_tokenizer()
    rows = summarization.tokens_of(summarization.load(args.data, "train")[0], tokenizer, 0, args)
    with torch.no_grad():
        mean = summarization.token_loss(summarization.make_model(args, tokenizer), rows, tokenizer, args.device)
    assert run["history"][0]["loss"] == pytest.approx(mean, rel=1e-5)


def test_the_token_that_a_decoder_starts_with_is_no_label(summarization, arguments):
    args, tokenizer = summarization.parse(arguments("t5")), tiny_tokenizer()
    pairs = [summarization.Pair("a", "b c")]
    b, c = tokenizer.convert_tokens_to_ids(["b", "c"])
    (row,) = summarization.tokens_of(pairs, tokenizer, tokenizer.cls_token_id, args)
    assert row["labels"] == [b, c, tokenizer.sep_token_id]
    (row,) = summarization.tokens_of(pairs, tokenizer, tokenizer.pad_token_id, args)
    assert row["labels"] == [tokenizer.cls_token_id, b, c, tokenizer.sep_token_id]


def test_a_prefix_stands_before_each_article(summarization, arguments):
    args, tokenizer = summarization.parse(arguments("t5", "--prefix=ab: ")), tiny_tokenizer()
    (row,) = summarization.tokens_of([summarization.Pair("c", "d")], tokenizer, 0, args)
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == "a b : c"


def test_rouge_by_hand(summarization):
    found = summarization.rouge(["police kill the gunman", "x"], ["police killed gunman", "x"])
    # Stems police, kill, gunman of 3 and 4; pairs: police kill of 2 and 3; the whole is a common subsequence.
    one, two = 2 * 3 / (3 + 4), 2 * 1 / (2 + 3)
    assert found == pytest.approx({"ROUGE-1": 50 * (one + 1), "ROUGE-2": 50 * (two + 0), "ROUGE-L": 50 * (one + 1)})


def test_letters_that_rouge_does_not_see_are_warned_of(summarization, arguments, tmp_path, capsys):
    argv = arguments("t5", "--steps=1", "--method=plain")
    summarization.main(argv)
    assert "warning" not in capsys.readouterr().err
    titles = tmp_path / "gigaword" / "valid.title.filter.txt"
    titles.write_text("\u043a\u043e\u0442\n" + titles.read_text().partition("\n")[2])
    summarization.main(argv)
    assert "warning: 1 of 3 headlines have letters other than a to z" in capsys.readouterr().err
    assert summarization.rouge(["\u043a\u043e\u0442"], ["\u043a\u043e\u0442"])["ROUGE-1"] == 0


def test_headlines_of_a_model_that_diverged_have_no_score(summarization, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(summarization, "token_loss", lambda *args: math.nan)
    record = summarization.main(arguments("t5", "--steps=1", "--method=plain"))
    (run,) = record["runs"]["plain"]
    assert run["diverged"]
    assert all(math.isnan(value) for value in run["metrics"].values())
    assert record["rows"] == {
        "pairs, train": {"used": 3, "left_out": 1},
        "pairs, development": {"used": 3, "left_out": 0},
    }


def test_first_words(summarization):
    assert summarization.first_words("one  two three", 2) == "one two"
