"""Headlines and summaries with T5, BART, a pretrained encoder as both halves, or a new model: Gigaword and its like.

Files in Gigaword's format, or a data set of the hub with its columns:

    python examples/summarization.py --data Harvard/gigaword --model google-t5/t5-small --prefix "summarize: "
    python examples/summarization.py --data sumdata/ --model facebook/bart-base --method plain gradalign --seeds 3
    python examples/summarization.py --data headlines/ --model bert-tiny
    python examples/summarization.py --data headlines/ --scratch t5 --layers 2 --width 128
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import reading
import torch
import training
from headline_formats import Pair, load
from rouge_score.rouge_scorer import RougeScorer
from seq2seq_models import make_model, make_tokenizer
from torch import Tensor, nn

from gradalign.cli import options
from gradalign.cli.errors import CommandError

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
EVALUATION_BATCH = 32
IGNORED = -100  # a label that has no loss


def tokens_of(
    pairs: Sequence[Pair], tokenizer: Any, start: int, args: argparse.Namespace
) -> list[dict[str, list[int]]]:
    """For each pair the tokens of the article, and those of the headline as labels.

    Args:
        pairs: in the order of the result.
        tokenizer: of the model.
        start: the token that the decoder begins with. It is no label: an encoder's tokenizer puts it before every text.
        args: from `parse`.
    """
    articles = tokenizer([args.prefix + pair.article for pair in pairs], truncation=True, max_length=args.max_length)
    titles = tokenizer(text_target=[pair.title for pair in pairs], truncation=True, max_length=args.max_title_length)
    labels = [tokens[1:] if tokens[0] == start else tokens for tokens in titles["input_ids"]]
    inputs = zip(articles["input_ids"], articles["attention_mask"], labels, strict=True)
    return [{"input_ids": ids, "attention_mask": mask, "labels": label} for ids, mask, label in inputs]


def padded(rows: Sequence[dict[str, list[int]]], tokenizer: Any) -> dict[str, Tensor]:
    """One batch of several pairs."""
    inputs = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    longest = max(len(row["labels"]) for row in rows)
    labels = [row["labels"] + [IGNORED] * (longest - len(row["labels"])) for row in rows]
    return {**tokenizer.pad(inputs, return_tensors="pt"), "labels": torch.tensor(labels)}


def num_tokens(batch: dict[str, Tensor]) -> int:
    """Tokens that have a loss."""
    return int((batch["labels"] != IGNORED).sum())


def summed_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Cross-entropy in nats, summed over the tokens of the headlines."""
    labels = batch["labels"]
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels=labels),
        use_cache=False,
    ).logits
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def token_loss(model: Any, rows: Sequence[dict[str, list[int]]], tokenizer: Any, device: torch.device) -> float:
    """Mean cross-entropy of a token, in nats."""
    total, count = 0.0, 0
    for first in range(0, len(rows), EVALUATION_BATCH):
        batch = padded(rows[first : first + EVALUATION_BATCH], tokenizer)
        total += summed_loss(model, training.on_device(batch, device)).item()
        count += num_tokens(batch)
    return total / count


def write(model: Any, rows: Sequence[dict[str, list[int]]], tokenizer: Any, args: argparse.Namespace) -> list[str]:
    """The headline that beam search finds for each article, in the order of the rows."""
    texts = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for first in range(0, len(order), EVALUATION_BATCH):
        numbers = order[first : first + EVALUATION_BATCH]
        batch = padded([rows[i] for i in numbers], tokenizer)
        del batch["labels"]
        written = model.generate(
            **training.on_device(batch, args.device),
            num_beams=args.beams,
            max_new_tokens=args.max_title_length,
            no_repeat_ngram_size=3,
            do_sample=False,
        )
        for i, text in zip(numbers, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
    return texts


def rouge(titles: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2 and -L in percent, of words without their endings (Lin 2004; the package `rouge-score`)."""
    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [scorer.score(title, text) for title, text in zip(titles, written, strict=True)]
    return {name: 100 * sum(score[key].fmeasure for score in scores) / len(scores) for key, name in ROUGE.items()}


def loses_letters(text: str) -> bool:
    """Whether the words of `rouge-score`, which are of a to z and digits, leave letters out."""
    return any(letter.isalnum() and not letter.isascii() for letter in text)


def first_words(article: str, num: int) -> str:
    """The start of an article, which a headline model has to beat."""
    return " ".join(article.split()[:num])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains by the options, prints ROUGE on the development set, and returns what --out holds."""
    args = parse(argv)
    (train, without), (dev, dev_without) = (load(args.data, split, args.columns) for split in ("train", "dev"))
    train, dev = train[: args.train_limit], dev[: args.dev_limit]
    rows = reading.checked(
        {"pairs, train": reading.Rows(len(train), without), "pairs, development": reading.Rows(len(dev), dev_without)}
    )
    tokenizer = make_tokenizer(args, (text for pair in train for text in pair))
    start = make_model(args, tokenizer).config.decoder_start_token_id
    train_rows, dev_rows = (tokens_of(pairs, tokenizer, start, args) for pairs in (train, dev))
    titles = [pair.title for pair in dev]
    if others := sum(map(loses_letters, titles)):
        print(
            f"warning: {others} of {len(titles)} headlines have letters other than a to z, which ROUGE does not see: its "
            "figures are meant for English only",
            file=sys.stderr,
        )
    baseline = rouge(titles, [first_words(pair.article, args.first_words) for pair in dev])
    print(
        f"{len(train)} pairs; development: {len(dev)}, of which the first {args.first_words} words of the article score"
    )
    print("  " + ", ".join(f"{metric} {value:.2f}" for metric, value in baseline.items()))

    def steps(seed: int) -> Iterator[list[dict[str, Any]]]:
        for step in training.shuffled(len(train_rows), args, seed):
            batches = [padded([train_rows[i] for i in rows], tokenizer) for rows in step]
            total = sum(num_tokens(batch) for batch in batches)
            yield [{**batch, "tokens_of_step": total} for batch in batches]

    def loss_fn(model: Any, batch: dict[str, Any]) -> Tensor:
        return summed_loss(model, batch) / batch["tokens_of_step"]

    def make_run(seed: int) -> training.Run:
        model = make_model(args, tokenizer)

        def evaluate() -> dict[str, float]:
            loss = token_loss(model, dev_rows, tokenizer, args.device)
            scores = rouge(titles, write(model, dev_rows, tokenizer, args))
            return training.measured({"loss": loss, **scores}, [torch.tensor(loss)])

        steps_per_epoch = max(1, len(train_rows) // args.batch_size)
        of_model = partial(loss_fn, model)
        return training.Run(model, of_model, steps(seed), steps_per_epoch, evaluate, reduction="sum")

    return training.compare(args, make_run, rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = training.parser(__doc__, model="google-t5/t5-small", lr=3e-4)
    add = parser.add_argument
    add("--data", required=True, metavar="NAME", help="folder with Gigaword's files, or hub name")
    add("--columns", nargs=2, default=("document", "summary"), metavar=("TEXT", "TITLE"), help="of a hub data set")
    add("--prefix", default="", metavar="TEXT", help='put before each article; T5 knows "summarize: "')
    add("--train-limit", type=options.count(1), metavar="N", help="only the first pairs")
    add("--dev-limit", type=options.count(1), default=1000, metavar="N", help="only the first pairs (default: 1000)")
    add("--max-length", type=options.count(4), default=128, metavar="N", help="tokens of an article (default: 128)")
    add("--max-title-length", type=options.count(4), default=32, metavar="N", help="of a headline (default: 32)")
    add("--beams", type=options.count(1), default=4, metavar="N", help="of the search for a headline (default: 4)")
    add(
        "--first-words", type=options.count(1), default=8, metavar="N", help="of an article, as a baseline (default: 8)"
    )
    add("--scratch", choices=("t5", "bart"), help="a new model and tokenizer, instead of --model")
    add("--layers", type=options.count(1), metavar="N", help="of each half with --scratch (default: 2)")
    add("--width", type=options.count(1), metavar="N", help="of --scratch (default: 128)")
    add("--heads", type=options.count(1), metavar="N", help="of --scratch; they divide the width (default: 4)")
    add("--vocabulary", type=options.count(300), metavar="N", help="tokens of --scratch (default: 4000)")
    args = training.parse(parser, argv)
    args.columns = tuple(args.columns)
    try:
        instead = None if args.scratch else f"--model {args.model}"
        options.fill_defaults(args, "--scratch", instead, layers=2, width=128, heads=4, vocabulary=4000)
    except CommandError as error:
        parser.error(str(error))
    if args.scratch and args.width % args.heads:
        parser.error(f"--heads: expected a divisor of --width; got {args.heads} and {args.width}")
    return args


if __name__ == "__main__":
    training.run_main(main)
