"""The table of a run and the conclusions it allows. Text is ASCII, which every terminal can show."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from gradalign.cli.demo.paired import MIN_SEEDS, Interval
from gradalign.cli.demo.verdict import shown, verdict

Row = tuple[str, str, str, str]


def show(record: dict[str, Any], console: Console) -> None:
    """Prints the table and, below it, the conclusions."""
    console.print(table(record))
    for sentence in (conditions(record), *findings(record)):
        console.print(sentence, highlight=False)


def table(record: dict[str, Any]) -> Table:
    """One row per measurement, one column per arm."""
    shown = Table(title=title(record["settings"]), title_style="bold", title_justify="left")
    shown.add_column()
    for arm in ("AdamW", "AdamW, equal time", "gradalign"):
        shown.add_column(arm, justify="right")
    for row in rows(record["summary"], record["peak_memory_bytes"]):
        shown.add_row(*row)
    return shown


def title(settings: dict[str, Any]) -> str:
    """The title: what was compared."""
    noise = f" ({settings['label_noise']:.0%} wrong labels)" if settings["label_noise"] else ""
    aligned = f"{settings['objective']}, weight {settings['weight']:g}, {settings['normalize']}"
    return f"{settings['model']} on {settings['data']}{noise}: AdamW without and with gradalign ({aligned})"


def rows(s: dict[str, Any], peak_memory: dict[str, int]) -> list[Row]:
    """The cells of the table, from the summary of a run."""
    before, after, seconds = s["alignment_before"], s["alignment_after"], s["seconds_per_step"]
    steps, more = s["steps"], s["further_adamw_steps"]
    plain, longer, aligned = (
        shown(Interval(**s["accuracy"][arm]), 1, "%") for arm in ("adamw", "adamw_equal_time", "gradalign")
    )
    equal_steps, equal_time = (
        shown(Interval(**s["difference_points"][at]), 2, "", "+") for at in ("equal_steps", "equal_time")
    )
    return [
        ("optimizer steps", f"{steps}", f"{steps + more:.0f}", f"{steps}"),
        ("test accuracy", plain, longer, aligned),
        ("gradalign minus this", equal_steps, equal_time, ""),
        _both("training loss", *(f"{s['train_loss'][arm]:.3f}" for arm in ("adamw", "gradalign"))),
        *(
            _both(
                f"alignment {name}",
                *(f"{before[name]:.2g} -> {after[arm][name]:.2g}" for arm in ("adamw", "gradalign")),
            )
            for name in ("dot", "cosine")
        ),
        _both("seconds per step", f"{seconds['adamw']:.4f}", f"{seconds['gradalign']:.4f}"),
        _both("cost factor", "1", f"{s['cost_factor']:.2f}"),
        _both("peak memory", *(f"{peak_memory[arm] / 2**20:.0f} MiB" for arm in ("adamw", "gradalign"))),
    ]


def conditions(record: dict[str, Any]) -> str:
    """How the numbers were measured."""
    settings, s = record["settings"], record["summary"]
    seeds = "One seed" if s["num_seeds"] == 1 else f"Means of {s['num_seeds']} seeds"
    spread = " with 95% intervals" if s["num_seeds"] >= MIN_SEEDS else ", too few for an interval"
    return (
        f"{seeds}{spread}; {settings['train_size']} texts for training and {settings['test_size']} for the test, no group "
        f"(film) in both; {settings['k']} micro-batches of {settings['batch']}. Both arms use AdamW and the same initial "
        "weights, batches and dropout. Loss: mean of the last 20 steps. Alignment: before -> after equal steps, on held-out "
        "micro-batches in eval mode. Times: medians of alternating steps."
    )


def findings(record: dict[str, Any]) -> list[str]:
    """What the accuracies show at equal steps and at equal time, one sentence each."""
    s = record["summary"]
    return [
        verdict(f"At {words}: gradalign minus AdamW", Interval(**s["difference_points"][key]), s["num_seeds"])
        for key, words in (("equal_steps", "equal steps"), ("equal_time", "equal time"))
    ]


def _both(name: str, plain: str, aligned: str) -> Row:
    return (name, plain, "", aligned)
