"""The table of a run and the conclusions it allows. Text is ASCII, which every terminal can show."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from gradalign.cli.demo.paired import MIN_SEEDS, Interval
from gradalign.cli.demo.sites.data import NUM_SITES
from gradalign.cli.demo.sites.methods import LONGER, METHODS, PLAIN
from gradalign.cli.demo.sites.record import NAMES
from gradalign.cli.demo.verdict import short_verdict, shown
from gradalign.cli.workload.sites import WORDINGS

TITLE = "Reviews from two sites with planted shortcuts, which mean nothing in the test"
COLUMNS = ("test, %", "minus plain", "own", "misled", "passes", "seconds")
BY_SITE = tuple(method for method in METHODS if method.aligned and not method.mixed)
CONTROLS = tuple(method for method in METHODS if method.mixed)


def show(record: dict[str, Any], console: Console) -> None:
    """Prints the table and, below it, the conclusions."""
    console.print(table(record["summary"]))
    for sentence in (*conditions(record), *findings(record["summary"]), ELSEWHERE):
        console.print(sentence, highlight=False)


def table(summary: dict[str, Any]) -> Table:
    """One row per arm."""
    made = Table(
        title=TITLE, title_style="bold", title_justify="left", box=box.SIMPLE, padding=(0, 0, 0, 1), pad_edge=False
    )
    made.add_column("", no_wrap=True)
    for column in COLUMNS:
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows(summary):
        made.add_row(*row)
    return made


def rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the table, from the summary of a run."""
    passes = {method.name: method.passes for method in METHODS} | {LONGER: PLAIN.passes}
    found: list[tuple[str, ...]] = []
    for name in NAMES:
        arm = summary["arms"][name]
        found.append(
            (
                name,
                shown(_percent(arm["test"]), 1, ""),
                "" if name == PLAIN.name else shown(Interval(**arm["minus_plain"]), 1, "", "+"),
                f"{_percent(arm['own']).mean:.1f}",
                f"{100 * arm['by_pointing_right'][0]:.1f}",
                f"{passes[name] * arm['steps'] * NUM_SITES:.0f}",
                f"{arm['seconds']:.2f}",
            )
        )
    return found


def conditions(record: dict[str, Any]) -> list[str]:
    """What was planted, how the numbers were measured and with which settings."""
    settings, counts = record["settings"], record["seeds"][0]["data"]
    (first, second), reliability = WORDINGS[settings["wording"]][:NUM_SITES], settings["reliability"]
    num = record["summary"]["num_seeds"]
    seeds = "One seed" if num == 1 else f"Means of {num} seeds"
    values = ", ".join(f"{method.name} {method.setting}" for method in METHODS if method.setting and not method.mixed)
    spread = " with 95% intervals" if num >= MIN_SEEDS else ", too few for an interval"
    return [
        f'The shortcuts are planted. The reviews are real, but two sentences were put in front of each: "{first[0]}" or '
        f'"{first[1]}", then "{second[0]}" or "{second[1]}" At site 1 the first tells good from bad in {reliability:.0%} of '
        "the reviews and the second is a coin, at site 2 the other way round, in the test both are coins.",
        f"{seeds}{spread}. {counts['train']} reviews for training, {counts['test']} for the test, {counts['own']} more planted "
        "as at the sites (own), no film in two of these. Misled: accuracy on those of the test whose two planted sentences "
        "point to the wrong label. Logistic regression on features of a frozen MiniLM, SGD, full batch, one micro-batch a "
        "site. Mixed: the same reviews, dealt to two micro-batches without regard to the site. Seconds: of the processor, in "
        "training; equal time is the slowest method's.",
        f"No method is tuned in this run: lr {settings['lr']:g} for all, {values}. The weights, which rise over the first "
        f"{settings['warmup']} steps, were chosen in earlier trials on other seeds than the default ones, that is on other "
        "splits of the same pool of reviews.",
    ]


def findings(summary: dict[str, Any]) -> list[str]:
    """What the accuracies show: gradalign's objectives against plain training and Reptile, then the controls."""
    arms, num = summary["arms"], summary["num_seeds"]
    compared = [
        *((f"At equal time: {m.name} minus plain", arms[m.name]["minus_longer"]) for m in BY_SITE),
        *((f"{m.name} minus Reptile, which needs half the passes", arms[m.name]["minus_reptile"]) for m in BY_SITE),
        *((f"Control: {m.name} minus plain", arms[m.name]["minus_plain"]) for m in CONTROLS),
    ]
    lines = [f"- {short_verdict(words, Interval(**difference), num)}." for words, difference in compared]
    return lines if num < MIN_SEEDS else [*lines, CAUTION.format(len(lines))]


CAUTION = (
    "Without a difference an interval excludes 0 by chance in one of 20 comparisons, and these are {}; repeat them with other "
    "seeds (--first-seed) before you rely on them."
)
ELSEWHERE = (
    "Where not to expect a gain: micro-batches dealt without regard to their source (the controls), and fine-tuning on clean "
    "reviews (gradalign demo --task reviews measures that). docs/evidence.md says where it helps, where not, and what does as "
    "well for less."
)


def _percent(value: dict[str, Any]) -> Interval:
    half_width = value["half_width"]
    return Interval(100 * value["mean"], None if half_width is None else 100 * half_width)
