"""Extractive question answering with BERT, RoBERTa, ELECTRA and their like: SQuAD, NewsQA, Quasar-T.

Files in the published formats, or a data set of the hub with SQuAD's columns:

    python examples/question_answering.py --data rajpurkar/squad_v2 --model google/electra-small-discriminator
    python examples/question_answering.py --data squad/ --method plain gradalign sam --seeds 3 --out squad.json
    python examples/question_answering.py --data newsqa/combined-newsqa-data-v1.json --answerable-only
    python examples/question_answering.py --data quasar-t/ --contexts short --passages 20
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import question_formats
import reading
import squad_metrics
import torch
import training
import transformers
from question_formats import Question
from question_windows import Logits, Window, predict, target, windows
from torch import Tensor

from gradalign.cli import options
from gradalign.cli.errors import CommandError

EVALUATION_BATCH = 64


def padded(inputs: Sequence[dict[str, list[int]]], tokenizer: Any) -> dict[str, Tensor]:
    """One batch of several windows."""
    return dict(tokenizer.pad(inputs, return_tensors="pt"))


def all_logits(model: Any, cut: Sequence[Window], tokenizer: Any, device: torch.device) -> list[Logits]:
    """Start and end logits of every window, without those of padding; windows of one length are computed together."""
    found: list[Logits] = [([], [])] * len(cut)
    order = sorted(range(len(cut)), key=lambda i: len(cut[i].offsets))
    for first in range(0, len(order), EVALUATION_BATCH):
        rows = order[first : first + EVALUATION_BATCH]
        output = model(**training.on_device(padded([cut[i].inputs for i in rows], tokenizer), device))
        both = zip(output.start_logits.float().tolist(), output.end_logits.float().tolist(), strict=True)
        for i, (starts, ends) in zip(rows, both, strict=True):
            length = len(cut[i].offsets)
            found[i] = (starts[:length], ends[:length])
    return found


def chosen(args: argparse.Namespace, split: str, limit: int | None) -> list[Question]:
    """The questions of a split that the options ask for."""
    questions = question_formats.load(args.data, split, args.contexts, args.passages)
    if args.answerable_only:
        questions = [question for question in questions if question.answers]
    return questions[:limit]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains by the options, prints the official figures of the development set, and returns what --out holds."""
    args = parse(argv)
    name, found = training.model_source(args.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, padding_side="right", **found)
    if args.max_length > tokenizer.model_max_length:
        raise CommandError(
            f"--max-length: expected at most {tokenizer.model_max_length}, which the model reads; got {args.max_length}"
        )
    asked, dev = chosen(args, "train", args.train_limit), chosen(args, "dev", args.dev_limit)
    # Quasar-T has questions whose answer no passage holds: nothing to train on, but they count in the evaluation.
    train = [question for question in asked if question.spans or not question.answers]
    rows = reading.checked(
        {
            "questions, train": reading.Rows(len(train), len(asked) - len(train)),
            "questions, development": reading.Rows(len(dev)),
        }
    )
    lengths = (args.max_length, args.stride, args.question_length)
    train_windows, dev_windows = windows(train, tokenizer, *lengths), windows(dev, tokenizer, *lengths)
    targets = [target(window, train[window.question].spans) for window in train_windows]
    print(f"{len(train)} questions in {len(train_windows)} windows; development: {len(dev)} in {len(dev_windows)}")

    def micro_batch(rows: Sequence[int]) -> dict[str, Tensor]:
        batch = padded([train_windows[i].inputs for i in rows], tokenizer)
        firsts, lasts = zip(*(targets[i] for i in rows), strict=True)
        return {**batch, "start_positions": torch.tensor(firsts), "end_positions": torch.tensor(lasts)}

    def steps(seed: int) -> Iterator[list[dict[str, Tensor]]]:
        for step in training.shuffled(len(train_windows), args, seed):
            yield [micro_batch(rows) for rows in step]

    def make_run(seed: int) -> training.Run:
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(name, dtype=torch.float32, **found)
        training.check_length(args.max_length, model)

        def evaluate() -> dict[str, float]:
            logits = all_logits(model, dev_windows, tokenizer, args.device)
            texts, no_answer = predict(dev, dev_windows, logits, args.num_best, args.max_answer_length)
            threshold = args.no_answer_threshold
            if all(question.answers for question in dev):
                threshold = 1.0  # the model knows that there is always an answer
            metrics = squad_metrics.evaluate({q.id: q.answers for q in dev}, texts, no_answer, threshold)
            return training.measured(metrics, (torch.tensor(pair) for pair in logits))

        steps_per_epoch = max(1, len(train_windows) // args.batch_size)
        return training.Run(model, lambda batch: model(**batch).loss, steps(seed), steps_per_epoch, evaluate)

    return training.compare(args, make_run, rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = training.parser(__doc__, model="bert-base-uncased")
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="NAME",
        help="folder or file in a published format (see question_formats.py), or hub name",
    )
    add("--answerable-only", action="store_true", help="leave out questions without an answer")
    add("--contexts", choices=("short", "long"), default="short", help="passages of Quasar-T (default: short)")
    add("--passages", type=options.count(1), default=20, metavar="N", help="of Quasar-T, for a question (default: 20)")
    add("--train-limit", type=options.count(1), metavar="N", help="only the first questions")
    add("--dev-limit", type=options.count(1), metavar="N", help="only the first questions")
    add("--max-length", type=options.count(8), default=384, metavar="N", help="tokens of a window (default: 384)")
    add("--stride", type=options.count(0), default=128, metavar="N", help="tokens that neighbours share (default: 128)")
    add(
        "--question-length",
        type=options.count(1),
        default=64,
        metavar="N",
        help="tokens of a question at most (default: 64)",
    )
    add(
        "--max-answer-length",
        type=options.count(1),
        default=30,
        metavar="N",
        help="tokens of an answer at most (default: 30)",
    )
    add(
        "--num-best",
        type=options.count(1),
        default=20,
        metavar="N",
        help="starts and ends that are paired (default: 20)",
    )
    add(
        "--no-answer-threshold",
        type=options.fraction,
        default=0.5,
        metavar="P",
        help="a question counts as one without an answer where the model's probability of that is larger (default: 0.5)",
    )
    args = training.parse(parser, argv)
    least = args.question_length + args.stride + 8  # special tokens, and some of the context that is not shared
    if args.max_length < least:
        parser.error(
            f"--max-length: expected at least {least}, which is --question-length + --stride + 8; got {args.max_length}; "
            "shorten the other two"
        )
    return args


if __name__ == "__main__":
    training.run_main(main)
