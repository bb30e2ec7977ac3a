"""The demo's table and what it lets one say."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from gradalign.cli.paired import LEAST_SEEDS, Interval


def show(record: dict[str, Any], console: Console) -> None:
    """Prints the table and, below it, the findings in words."""
    console.print(table(record))
    for sentence in findings(record):
        console.print(f"  {sentence}", highlight=False)


def table(record: dict[str, Any]) -> Table:
    """One row a measure, one column an arm."""
    s, settings = record["summary"], record["settings"]
    shown = Table(title=title(settings), title_style="bold", caption=caption(record), caption_justify="left")
    shown.add_column("")
    shown.add_column("AdamW", justify="right")
    shown.add_column("AdamW, equal time", justify="right")
    shown.add_column("gradalign", justify="right")
    for row in rows(s, record["peak_memory_bytes"]):
        shown.add_row(*row)
    return shown


def title(settings: dict[str, Any]) -> str:
    """What was compared."""
    return (
        f"{settings['model']} on {settings['data']}: AdamW and gradalign "
        f"({settings['objective']}, weight {settings['weight']:g}, {settings['normalize']})"
    )


def rows(s: dict[str, Any], peak_memory: dict[str, int]) -> list[tuple[str, str, str, str]]:
    """The cells of the table, from the summary of a run."""
    before, after = s["alignment_before"], s["alignment_after"]
    accuracy = {name: _accuracy(Interval(**value)) for name, value in s["accuracy"].items()}
    seconds = s["seconds_per_step"]
    return [
        ("optimizer steps", f"{s['steps']}", f"{s['steps'] + s['further_adamw_steps']:.0f}", f"{s['steps']}"),
        (f"test accuracy{_over(s)}", accuracy["adamw"], accuracy["adamw_equal_time"], accuracy["gradalign"]),
        ("training loss, last 20 steps", f"{s['train_loss']['adamw']:.3f}", "", f"{s['train_loss']['gradalign']:.3f}"),
        *(
            (
                f"alignment {name}, before -> after",
                f"{before[name]:.3g} -> {after['adamw'][name]:.3g}",
                "",
                f"{before[name]:.3g} -> {after['gradalign'][name]:.3g}",
            )
            for name in ("dot", "cosine")
        ),
        ("seconds per step, median", f"{seconds['adamw']:.4f}", "", f"{seconds['gradalign']:.4f}"),
        ("cost factor, median of paired steps", "1", "", f"{s['cost_factor']:.2f}"),
        ("peak memory of tensors", _megabytes(peak_memory["adamw"]), "", _megabytes(peak_memory["gradalign"])),
    ]


def findings(record: dict[str, Any]) -> list[str]:
    """What the run shows and what it does not, a sentence each."""
    s = record["summary"]
    differences = {name: Interval(**value) for name, value in s["difference_points"].items()}
    return [
        verdict(differences["equal_steps"], "equal steps", s["num_seeds"]),
        verdict(differences["equal_time"], "equal time", s["num_seeds"]),
    ]


def verdict(difference: Interval, at: str, num_seeds: int) -> str:
    """What the accuracies of some seeds let one say, and no more."""
    measured = f"At {at}, gradalign minus AdamW is {difference.mean:+.2f} points of test accuracy"
    if difference.half_width is None:
        seeds = "one seed" if num_seeds == 1 else f"{num_seeds} seeds"
        return f"{measured} on {seeds}, which cannot show a difference: for an interval, give --seeds {LEAST_SEEDS} or more."
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    bounds = f"{measured}, 95% interval {low:+.2f} to {high:+.2f} over {num_seeds} paired seeds"
    if difference.excludes_zero:
        return f"{bounds}: a difference, for this model, data and setting."
    return f"{bounds}: it includes 0, so no difference is shown."


def caption(record: dict[str, Any]) -> str:
    """How the numbers came about."""
    settings, s = record["settings"], record["summary"]
    flipped = f", {settings['label_noise']:.0%} of the training labels wrong" if settings["label_noise"] else ""
    return (
        f"{s['num_seeds']} seed{'s' if s['num_seeds'] > 1 else ''}, {settings['train_size']} training and {settings['test_size']} "
        f"test texts with no group (film) in common{flipped}; k = {settings['k']} micro-batches of {settings['batch']}. Both arms: "
        "same weights, batches and dropout. Alignment: held-out micro-batches, eval mode, means over the seeds; after "
        "= after equal steps."
    )


def _over(s: dict[str, Any]) -> str:
    if s["num_seeds"] == 1:
        return ", one seed"
    return f", mean of {s['num_seeds']} seeds" + (" and 95% interval" if s["num_seeds"] >= LEAST_SEEDS else "")


def _accuracy(value: Interval) -> str:
    spread = "" if value.half_width is None else f" ± {100 * value.half_width:.1f}"
    return f"{100 * value.mean:.1f}%{spread}"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
