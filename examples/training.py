"""What the examples share: their options, the methods that fill `.grad`, the training loop, seeds with intervals, the record.

An example makes its data once, and for every method and seed a `Run`: a model, the micro-batches of each step, the loss of one
micro-batch, and what is measured at the end. The rest is here:

    def main(argv=None):
        parser = training.parser(__doc__, model="bert-base-uncased")
        parser.add_argument(...)  # of this example
        args = training.parse(parser, argv)
        ...
        return training.compare(args, make_run, rows)  # make_run(seed) -> Run; rows from reading.checked
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import datasets
import reading
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, get_scheduler

import gradalign
from gradalign.baselines import FOMAML, SAM, Reptile
from gradalign.cli import machine, options, places
from gradalign.cli.demo import verdict
from gradalign.cli.demo.paired import MIN_SEEDS, Interval, interval
from gradalign.cli.errors import CommandError
from gradalign.cli.workload import assets

LOG_EVERY = 10  # steps; only these wait for the device
GENERATORS = 1000  # of a run at most: they are seeded with GENERATORS * seed, GENERATORS * seed + 1, ...
PACKAGES = ("torch", "transformers", "datasets", "peft", "tokenizers")
MicroBatch = Mapping[str, Any]


@dataclass
class Run:
    """One training, from its first weights.

    Attributes:
        model: all that is trained.
        loss_fn: the loss of one micro-batch, whose tensors are on the device.
        steps: endless; for each step its micro-batches (see `shuffled`).
        steps_per_epoch: how many steps see every row once.
        evaluate: measures the model, which is in evaluation mode: name of a metric -> value.
        reduction: "sum" where a loss carries its share of the step, such as tokens of the micro-batch over those of the step.
        task_of: the label of a micro-batch; the record then has the cosines between the tasks' gradients.
        source_of: the same; gradients are then compared between the labels and not within one.
    """

    model: nn.Module
    loss_fn: Callable[[Any], Tensor]
    steps: Iterable[Sequence[MicroBatch]]
    steps_per_epoch: int
    evaluate: Callable[[], dict[str, float]]
    reduction: str = "mean"
    task_of: Callable[[MicroBatch], str] | None = None
    source_of: Callable[[MicroBatch], str] | None = None


def gradalign_method(model: nn.Module, args: argparse.Namespace, warmup: int) -> gradalign.GradAlign:
    """The weight rises linearly, as long as the learning rate does."""
    return gradalign.GradAlign(
        model,
        weight=lambda step: args.weight * min(1.0, (step + 1) / max(1, warmup)),
        objective=args.objective,
        normalize=args.normalize,
        estimator=args.estimator,
    )


# How `.grad` is filled: name -> (model, options, steps of the warm-up) -> an object with the `backward` of GradAlign.
METHODS: dict[str, Callable[[nn.Module, argparse.Namespace, int], Any]] = {
    "plain": lambda model, args, warmup: gradalign.GradAlign(model, weight=0.0),
    "gradalign": gradalign_method,
    "reptile": lambda model, args, warmup: Reptile(model, args.inner_lr),
    "fomaml": lambda model, args, warmup: FOMAML(model, args.inner_lr),
    "sam": lambda model, args, warmup: SAM(model, args.rho),
}
# Options that only some methods have: (methods, defaults).
OWN_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("gradalign",), {"weight": 0.003, "objective": "variance", "normalize": "direction", "estimator": "split"}),
    (("reptile", "fomaml"), {"inner_lr": 0.01}),
    (("sam",), {"rho": 0.05}),
)


def parser(doc: str, model: str, lr: float = 3e-5, batch_size: int = 32) -> argparse.ArgumentParser:
    """A parser with the options of all examples.

    Args:
        doc: the docstring of the example: its first line, and the commands below it, are the help.
        model: name of the default model.
        lr: default of the learning rate.
        batch_size: default of the rows of a step.
    """
    summary, _, rest = doc.partition("\n")
    made = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    shipped = ", ".join(assets.MODELS)
    add(
        "--model",
        default=model,
        metavar="NAME",
        help=f"local folder, hub name, or one of the models that packages ship: {shipped} (default: {model})",
    )
    add(
        "--method",
        nargs="+",
        choices=list(METHODS),
        default=["gradalign"],
        help="what fills .grad; several are compared on the same seeds, with the first one (default: gradalign)",
    )
    add("--weight", type=options.finite, help="of gradalign's term, after the warm-up (default: 0.003)")
    add("--objective", choices=("dot", "norm", "variance", "cosine"), help="of gradalign (default: variance)")
    add("--normalize", choices=("direction", "none", "gradient"), help="of gradalign (default: direction)")
    add("--estimator", choices=sorted(gradalign.estimators.ESTIMATORS), help="of gradalign (default: split)")
    add("--inner-lr", type=options.positive, metavar="LR", help="of reptile and fomaml (default: 0.01)")
    add("--rho", type=options.positive, help="radius of sam (default: 0.05)")
    add(
        "--seeds",
        type=options.count(1),
        default=1,
        metavar="N",
        help=f"{MIN_SEEDS} or more give an interval (default: 1)",
    )
    add("--first-seed", type=options.count(0), default=0, metavar="N", help="the first of them (default: 0)")
    length = made.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=options.positive, default=3.0, help="passes over the data (default: 3)")
    length.add_argument("--steps", type=options.count(1), metavar="N", help="optimizer steps, instead of --epochs")
    add(
        "--batch-size",
        type=options.count(2),
        default=batch_size,
        metavar="N",
        help=f"rows of a step (default: {batch_size})",
    )
    add("--micro-batches", type=options.count(2), default=8, metavar="K", help="parts of a step (default: 8)")
    add("--lr", type=options.positive, default=lr, help=f"peak of the learning rate of AdamW (default: {lr:g})")
    add("--warmup", type=options.fraction, default=0.1, metavar="SHARE", help="of the steps (default: 0.1)")
    add("--weight-decay", type=options.finite, default=0.01, help="(default: 0.01)")
    add(
        "--max-grad-norm",
        type=options.positive,
        default=1.0,
        metavar="NORM",
        help="gradients are clipped at (default: 1)",
    )
    add("--bf16", action="store_true", help="compute in bfloat16 by autocast; parameters stay in float32")
    add("--device", default=places.default_device(), metavar="NAME", help="PyTorch device")
    add("--out", type=options.file, metavar="FILE", help="JSON file for settings, losses and metrics of every seed")
    return made


def parse(made: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, checked; one that would have no effect with the chosen methods is an error."""
    args = made.parse_args(argv)
    transformers.logging.set_verbosity_error()  # of a new head's weights, which no checkpoint has, it would report
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    args.command = " ".join([Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)])
    if args.batch_size % args.micro_batches:
        made.error(
            f"--batch-size: expected a multiple of --micro-batches; got {args.batch_size} and {args.micro_batches}, which cut "
            "a step into micro-batches of different sizes"
        )
    try:
        for methods, defaults in OWN_OPTIONS:
            used = bool(set(methods) & set(args.method))
            options.fill_defaults(
                args,
                f"--method {' or '.join(methods)}",
                None if used else f"--method {' '.join(args.method)}",
                **(defaults if used else dict.fromkeys(defaults)),
            )
        most = options.LARGEST // GENERATORS - args.seeds
        if args.first_seed > most:
            raise CommandError(f"--first-seed: expected at most {most}, with {args.seeds} seeds; got {args.first_seed}")
        args.device = places.usable_device(args.device)
        if args.out is not None:
            places.make_directory(args.out.parent)
    except CommandError as error:
        made.error(str(error))
    return args


def model_source(model: str) -> tuple[str, dict[str, Any]]:
    """Where `from_pretrained` finds a model, and options that keep it from running code that comes with one.

        name, options = training.model_source(args.model)
        model = AutoModel.from_pretrained(name, **options)

    Only a hub name uses the network.

    Raises:
        CommandError: there is no such model.
    """
    path = assets.locate(model) if model in assets.MODELS else Path(model)
    local = path.is_dir()
    name, found = str(path) if local else model, {"local_files_only": local, "trust_remote_code": False}
    try:
        AutoConfig.from_pretrained(name, **found)
    except (OSError, ValueError, KeyError) as error:
        raise CommandError(
            f"--model: expected {', '.join(assets.MODELS)}, a folder or a hub name of a model; got {model!r}: "
            f"{reading.first_line(error)}"
        ) from error
    return name, found


def check_length(length: int, model: nn.Module) -> None:
    """Refuses a --max-length beyond the learnt positions of an encoder.

    Raises:
        CommandError: it is longer.
    """
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            # Where padding has a position of its own, as in RoBERTa, those of tokens begin after it.
            longest = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
            if length > longest:
                raise CommandError(f"--max-length: expected at most {longest}, which the model reads; got {length}")


def shuffled(num_rows: int, args: argparse.Namespace, seed: int, parts: int = 1) -> Iterator[list[list[int]]]:
    """Endless steps: for each the row numbers of its micro-batches, all of one size.

    Every epoch has an order of its own; its last rows are left out where they fill no step.

    Args:
        num_rows: of the data.
        args: from `parse`.
        seed: of the orders.
        parts: of how many equal parts of a step these rows fill one; each part is a whole number of micro-batches.

    Raises:
        CommandError: there are fewer rows than a step takes.
    """
    size, per_step = args.batch_size // args.micro_batches, args.batch_size // parts
    if num_rows < per_step:
        raise CommandError(
            f"--batch-size: expected at most {num_rows * parts}, for {num_rows} rows; got {args.batch_size}"
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(num_rows, generator=generator).tolist()
        for first in range(0, num_rows - per_step + 1, per_step):
            yield [order[i : i + size] for i in range(first, first + per_step, size)]


def on_device(batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """A micro-batch with its tensors on the device; anything else as it is."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def autocast(args: argparse.Namespace) -> torch.autocast:
    """The context of every forward: bfloat16 with --bf16."""
    return torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16)


def adamw(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """Weight decay for matrices only: not for biases and the scales of norms."""
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=args.lr)


def train(run: Run, method: str, args: argparse.Namespace, name: str = "") -> list[dict[str, float]]:
    """Trains the model of a run in place.

    Args:
        run: what is trained, on what.
        method: a key of `METHODS`.
        args: from `parse`.
        name: in front of the progress bar.

    Returns:
        One row for every `LOG_EVERY`-th step and the last: step, loss, learning rate, and what the method knows of alignment.
    """
    num_steps = args.steps or max(1, round(args.epochs * run.steps_per_epoch))
    warmup = round(args.warmup * num_steps)
    optimizer = adamw(run.model, args)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=warmup, num_training_steps=num_steps)
    aligner = METHODS[method](run.model, args, warmup)

    def loss_fn(micro_batch: MicroBatch) -> Tensor:
        with autocast(args):
            return run.loss_fn(micro_batch)

    run.model.train()
    rows = []
    with tqdm(total=num_steps, desc=name, unit="step", dynamic_ncols=True) as bar:
        for step, micro_batches in zip(range(num_steps), run.steps, strict=False):
            lr = scheduler.get_last_lr()[0]
            loss = aligner.backward(
                loss_fn,
                [on_device(micro_batch, args.device) for micro_batch in micro_batches],
                reduction=run.reduction,
                tasks=run.task_of and list(map(run.task_of, micro_batches)),
                sources=run.source_of and list(map(run.source_of, micro_batches)),
            )
            nn.utils.clip_grad_norm_(run.model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step % LOG_EVERY == 0 or step == num_steps - 1:
                rows.append({"step": step, "loss": float(loss), "lr": lr, **gradalign.telemetry.logs(aligner.stats)})
                bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", refresh=False)
            bar.update()
    return rows


def compare(
    args: argparse.Namespace, make_run: Callable[[int], Run], rows: Mapping[str, Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """Trains every method on every seed, prints metrics with intervals, and writes the JSON file.

    The file is written after every run, so that an interrupted comparison leaves what is finished, with "complete": false.

    Args:
        args: from `parse`.
        make_run: seed -> a run. It is called with PyTorch seeded, once a method: all methods of a seed start from the same
            weights and see the same micro-batches.
        rows: for the record, from `reading.checked`.

    Returns:
        What the JSON file holds.
    """
    start = time.perf_counter()
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in args.method}
    record: dict[str, Any] = {}
    for seed in seeds:
        for method, found in runs.items():
            found.append(_one(args, make_run, method, seed))
            complete = all(len(of_method) == args.seeds for of_method in runs.values())
            record = _record(args, runs, dict(rows or {}), time.perf_counter() - start, complete)
            if args.out is not None:
                places.write_json(args.out, record)
    metrics, differences = _values(runs, args.method[0])
    report(metrics, differences, args.seeds, record["passes"])
    return record


def _record(
    args: argparse.Namespace,
    runs: Mapping[str, list[dict[str, Any]]],
    rows: dict[str, Any],
    seconds: float,
    complete: bool,
) -> dict[str, Any]:
    metrics, differences = _values(runs, args.method[0])
    return {
        "gradalign": gradalign.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
        "seconds": round(seconds, 1),
        "machine": {"cpu": machine.cpu(), "gpus": machine.gpus(), "platform": machine.platform.platform()},
        "versions": machine.versions(*PACKAGES),
        "settings": {name: _plain(value) for name, value in vars(args).items()},
        "rows": rows,
        "runs": runs,
        "passes": {method: _passes(found[-1], args) for method, found in runs.items() if found},
        "means": _intervals(metrics),
        "differences": _intervals(differences),
    }


def _passes(run: Mapping[str, Any], args: argparse.Namespace) -> float:
    """Forward and backward passes of a step, relative to plain training; of its last step, where every weight has risen."""
    return run["history"][-1]["align/passes"] / args.micro_batches


def _one(args: argparse.Namespace, make_run: Callable[[int], Run], method: str, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    run = make_run(seed)
    run.model.to(args.device)
    torch.manual_seed(seed)  # dropout masks do not depend on how the weights were made
    begin = time.perf_counter()
    history = train(run, method, args, f"{method}, seed {seed}")
    seconds = time.perf_counter() - begin
    run.model.eval()
    with torch.no_grad(), autocast(args):
        metrics = run.evaluate()
    found = {"seed": seed, "seconds": round(seconds, 2), "metrics": metrics, "history": history}
    # A decision by NaN is the first class, and would pass for an ordinary figure.
    broken = not (all(math.isfinite(row["loss"]) for row in history) and all_finite(run.model.parameters()))
    if broken:
        found["metrics"] = dict.fromkeys(metrics, math.nan)
    if broken or not all(map(math.isfinite, metrics.values())):
        found["diverged"] = True
        print(
            f"warning: {method}, seed {seed}: diverged; the loss, a weight or a metric is not finite", file=sys.stderr
        )
    return found


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no tensor has NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def measured(metrics: Mapping[str, float], logits: Iterable[Tensor]) -> dict[str, float]:
    """The metrics, or NaN for each where a logit that they come from is not finite."""
    return dict(metrics) if all_finite(logits) else dict.fromkeys(metrics, math.nan)


Metrics = dict[str, dict[str, list[float]]]  # of a method or a difference, by name, a value a seed


def _values(runs: Mapping[str, Sequence[Mapping[str, Any]]], first: str) -> tuple[Metrics, Metrics]:
    """The metrics of each method, and their differences to the first one on the seeds that both have finished."""
    metrics = {method: _by_metric([one["metrics"] for one in found]) for method, found in runs.items() if found}
    differences = {
        f"{method} - {first}": {
            name: [a - b for a, b in zip(values, metrics[first][name], strict=False)] for name, values in found.items()
        }
        for method, found in metrics.items()
        if method != first
    }
    return metrics, differences


def _by_metric(found: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [metrics[name] for metrics in found] for name in found[0]}


def _intervals(groups: Metrics) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mean and half-width of the 95% interval for every metric of every group."""
    return {
        group: {name: interval(values)._asdict() for name, values in metrics.items()}
        for group, metrics in groups.items()
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, type(None))) else str(value)


def report(metrics: Metrics, differences: Metrics, num_seeds: int, passes: Mapping[str, float]) -> None:
    """Prints for every metric the mean of each method and the paired differences, with Student's 95% interval over seeds.

    Beside each method are its passes of a step, relative to plain training: what equal steps cost.
    """
    level = "95% intervals over seeds" if num_seeds >= MIN_SEEDS else f"{MIN_SEEDS} or more give an interval"
    print(f"{num_seeds} seed{'s' if num_seeds > 1 else ''}; {level}; passes of a step are relative to plain")
    width = max(map(len, [*metrics, *differences]))
    for name in next(iter(metrics.values())):
        print(name)
        for groups, sign in ((metrics, ""), (differences, "+")):
            for group, values in groups.items():
                cost = f"  passes {passes[group]:.4g}" if group in passes else ""
                print(f"  {group:<{width}}  {shown(interval(values[name]), sign)}{cost}")


def shown(value: Interval, sign: str = "") -> str:
    """The mean, with the half-width where there is one."""
    return verdict.shown(value, 4, "", sign)


def run_main(main: Callable[[], Any]) -> None:
    """Calls the main function of a script; an error that the user can fix, or Ctrl-C, is shown without a traceback."""
    try:
        main()
    except CommandError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("interrupted; where --out was given, it has the finished runs", file=sys.stderr)
        raise SystemExit(130) from None
