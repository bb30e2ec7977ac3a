"""Text classification: the tasks of SuperGLUE, or tables of your own, one task or several at once.

    python examples/text_classification.py --tasks rte --method plain gradalign --seeds 5
    python examples/text_classification.py --tasks boolq cb rte wic --data SuperGLUE --model roberta-base
    python examples/text_classification.py --train a.csv --validation b.csv --model google/electra-small-discriminator

One encoder (BERT, RoBERTa, ELECTRA, any other of AutoModel) has a linear classifier for each task. With several tasks each
micro-batch of a step is from one of them, in turn and in equal numbers, with an order of the tasks that is drawn for every
step; `split` takes the places in a step in turn as probes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import reading
import torch
import training
from datasets import ClassLabel, Dataset
from superglue import TASKS, Row, Sample, Task, accuracy_and_f1
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import gradalign
from gradalign.cli import options
from gradalign.cli.errors import CommandError

HUB = "aps/super_glue"
EVALUATION_ROWS = 64
SPLITS = ("train", "validation")


class Data(NamedTuple):
    """A task with its samples."""

    task: Task
    train: Samples
    validation: Samples


class Read(NamedTuple):
    """What was read for a task.

    Attributes:
        name: of the task.
        task: its classes and metrics.
        samples: of each of `SPLITS`.
        left_out: rows of each of `SPLITS` that became no sample.
    """

    name: str
    task: Task
    samples: list[list[Sample]]
    left_out: list[int]


class Samples:
    """Samples of a task, tokenised when they are needed: ReCoRD has over a million.

    Args:
        samples: all of them.
        tokenizer: of the encoder.
        max_length: tokens of a pair; of the longer text the end is left out.
    """

    def __init__(self, samples: Sequence[Sample], tokenizer: Any, max_length: int) -> None:
        self.samples = samples
        self._tokenizer = tokenizer
        self._max_length = max_length

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int], task: str) -> dict[str, Any]:
        """The encoder's inputs of (samples x choices, longest), labels of (samples,) and the name of the task."""
        firsts, seconds = zip(*(pair for i in indices for pair in self.samples[i].texts), strict=True)
        inputs = self._tokenizer(
            list(firsts),
            None if seconds[0] is None else list(seconds),
            truncation=True,
            max_length=self._max_length,
            padding=True,
            return_tensors="pt",
        )
        return {**inputs, "labels": torch.tensor([self.samples[i].label for i in indices]), "task": task}

    def by_length(self, size: int) -> Iterator[list[int]]:
        """All samples in batches of at most `size`, sorted by length to save padding."""
        lengths = [max(len(first) + len(second or "") for first, second in s.texts) for s in self.samples]
        order = sorted(range(len(self)), key=lengths.__getitem__)
        yield from (order[i : i + size] for i in range(0, len(order), size))


class Classifier(nn.Module):
    """logits = W_task pool(encoder(x)) + b_task, the pool being the first token's state or the mean of all."""

    def __init__(self, encoder: nn.Module, num_classes: dict[str, int], pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.dropout = nn.Dropout(0.1)
        width = encoder.config.hidden_size
        # The prefix: a module cannot be named after a method of modules, and a table may be train.csv.
        self.heads = nn.ModuleDict({f"of_{task}": nn.Linear(width, num) for task, num in num_classes.items()})

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """(samples, classes); where a task has one class, (samples, choices)."""
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "task")}
        states = self.encoder(**inputs).last_hidden_state
        if self.pooling == "mean":
            mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        else:
            pooled = states[:, 0]
        logits = self.heads[f"of_{batch['task']}"](self.dropout(pooled)).float()
        return logits.view(len(batch["labels"]), -1)


def load_encoder(name: str) -> nn.Module:
    """A pretrained encoder in float32 without its pooler, in whose place there is a classifier."""
    found, found_options = training.model_source(name)
    encoder = AutoModel.from_pretrained(found, dtype=torch.float32, **found_options)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def superglue(args: argparse.Namespace) -> Iterator[Read]:
    """The tasks of SuperGLUE, from the published folders or from the hub."""
    for name in args.tasks:
        task, splits = TASKS[name], []
        folder = Path(args.data, task.folder)
        for split, file in zip(SPLITS, ("train.jsonl", "val.jsonl"), strict=True):
            published = folder / file
            rows = reading.load_file(published) if published.is_file() else reading.load_rows(args.data, split, name)
            splits.append([sample for row in rows for sample in task.samples(row)])
        yield Read(name, task, splits, [0, 0])


def tables(args: argparse.Namespace) -> Iterator[Read]:
    """The same from tables: a task for each, named after the file; its classes are the labels of the training rows.

    Rows without a text or a label are left out.
    """
    columns = [args.text_column, args.label_column, *filter(None, [args.second_column])]
    for i, train in enumerate(args.train):
        validation = reading.validation_of(train, args.validation[i] if args.validation else None)
        splits = []
        for split, data in zip(SPLITS, (train, validation), strict=True):
            rows = reading.load_part(data, split, as_texts=True)
            missing = [name for name in columns if name not in rows.column_names]
            if missing:
                raise CommandError(f"expected the columns {', '.join(columns)}; got {', '.join(rows.column_names)}")
            splits.append((len(rows), usable(rows, columns, args.label_column)))
        labels = [{str(row[args.label_column]) for row in rows} for _, rows in splits]
        classes, unknown = sorted(labels[0]), labels[1] - labels[0]
        if unknown or len(classes) < 2:
            raise CommandError(
                f"--label-column: expected the same two or more classes in {train} and {validation}; got {classes} and, in the "
                f"second alone, {sorted(unknown)}"
            )

        def samples(row: Row, classes: list[str] = classes) -> list[Sample]:
            second = str(row[args.second_column]) if args.second_column else None
            return [Sample([(str(row[args.text_column]), second)], classes.index(str(row[args.label_column])))]

        yield Read(
            Path(train).name.partition(".")[0],
            Task(len(classes), samples, accuracy_and_f1),
            [[sample for row in rows for sample in samples(row)] for _, rows in splits],
            [num - len(rows) for num, rows in splits],
        )


def usable(rows: Dataset, columns: Sequence[str], label_column: str) -> list[Row]:
    """The rows that have all of these columns; a negative number of a named class says that there is no label, as in SNLI."""
    named = isinstance(rows.features[label_column], ClassLabel)
    return [
        row for row in rows if all(row[name] is not None for name in columns) and not (named and row[label_column] < 0)
    ]


def steps_of(data: dict[str, Data], args: argparse.Namespace, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Endless steps: micro-batches of all tasks in turn.

    Which task comes first is drawn for every step: some methods depend on the order, and FOMAML follows the last
    micro-batch alone.
    """
    first, num = training.GENERATORS * seed, len(data)
    streams = {
        name: training.shuffled(len(found.train), args, first + i, parts=num)
        for i, (name, found) in enumerate(data.items())
    }
    names, generator = list(data), torch.Generator().manual_seed(first + num)
    while True:
        parts = {name: next(stream) for name, stream in streams.items()}
        order = [names[i] for i in torch.randperm(num, generator=generator)]
        yield [data[name].train.batch(parts[name][i], name) for i in range(args.micro_batches // num) for name in order]


def evaluate(model: Classifier, data: dict[str, Data], device: torch.device) -> dict[str, float]:
    """The metrics of every task on its validation samples; of several tasks also the mean over tasks of their mean."""
    found: dict[str, float] = {}
    means = []
    for name, (task, _, validation) in data.items():
        logits: list[Tensor] = [torch.empty(0)] * len(validation)
        for indices in validation.by_length(EVALUATION_ROWS):
            batch = training.on_device(validation.batch(indices, name), device)
            for i, row in zip(indices, model(batch).cpu(), strict=True):
                logits[i] = row
        metrics = training.measured(task.metrics(validation.samples, torch.stack(logits)), logits)
        means.append(sum(metrics.values()) / len(metrics))
        found |= metrics if len(data) == 1 else {f"{name}/{metric}": value for metric, value in metrics.items()}
    return found if len(data) == 1 else {**found, "mean": sum(means) / len(means)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = training.parser(__doc__, model="bert-base-uncased")
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), metavar="TASK", help=f"of SuperGLUE: {', '.join(TASKS)}"
    )
    what.add_argument(
        "--train",
        nargs="+",
        metavar="TABLE",
        help="CSV, JSON lines or Parquet file, folder or hub name; each is a task",
    )
    add("--data", default=HUB, help=f"of --tasks: the folder of the published files, or a hub name (default: {HUB})")
    add("--validation", nargs="+", metavar="TABLE", help="one for each of --train (default: their split of that name)")
    add("--text-column", default="text", metavar="NAME", help="of the tables (default: text)")
    add("--second-column", metavar="NAME", help="of the tables, where texts come in pairs")
    add("--label-column", default="label", metavar="NAME", help="of the tables (default: label)")
    add("--max-length", type=options.count(8), default=256, metavar="N", help="tokens (default: 256)")
    add("--pooling", choices=("first", "mean"), default="first", help="which states are classified (default: first)")
    add(
        "--between-tasks",
        action="store_true",
        help="compare the gradients of tasks, and not of micro-batches of one task (split and leave_one_out)",
    )
    args = training.parse(parser, argv)
    names = args.tasks or [Path(train).name.partition(".")[0] for train in args.train]
    if len(set(names)) < len(names):
        parser.error(f"expected tasks with different names; got {', '.join(names)}")
    if args.train and args.validation and len(args.train) != len(args.validation):
        parser.error(
            f"--validation: expected one for each of --train; got {len(args.validation)} and {len(args.train)}"
        )
    if args.micro_batches % len(names):
        parser.error(
            f"--micro-batches: expected a multiple of the {len(names)} tasks, which give equally many; got {args.micro_batches}"
        )
    if args.between_tasks and (len(names) == 1 or set(args.method) - {"plain", "gradalign"}):
        parser.error("--between-tasks: expected several tasks, and no method but plain and gradalign")
    if len(names) > 1 and args.estimator == "split":
        args.estimator = gradalign.estimators.Split(probes="rotate")  # else the last tasks give every probe
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, prints the metrics and returns the record."""
    args = parse(argv)
    name, found_options = training.model_source(args.model)
    tokenizer = AutoTokenizer.from_pretrained(name, **found_options)
    found = list((superglue if args.tasks else tables)(args))
    data = {
        read.name: Data(read.task, *(Samples(samples, tokenizer, args.max_length) for samples in read.samples))
        for read in found
    }
    rows = reading.checked(
        {
            f"{read.name}, {split}": reading.Rows(len(samples), left_out)
            for read in found
            for split, samples, left_out in zip(SPLITS, read.samples, read.left_out, strict=True)
        }
    )

    def make_run(seed: int) -> training.Run:
        encoder = load_encoder(args.model)
        training.check_length(args.max_length, encoder)
        model = Classifier(encoder, {name: data[name].task.num_classes for name in data}, args.pooling)
        task_of = itemgetter("task") if len(data) > 1 else None
        return training.Run(
            model,
            lambda batch: nn.functional.cross_entropy(model(batch), batch["labels"]),
            steps_of(data, args, seed),
            steps_per_epoch=max(1, sum(len(d.train) for d in data.values()) // args.batch_size),
            evaluate=lambda: evaluate(model, data, args.device),
            task_of=task_of,
            source_of=task_of if args.between_tasks else None,
        )

    return training.compare(args, make_run, rows)


if __name__ == "__main__":
    training.run_main(main)
