"""What the first screen of the README says about evidence is what the committed rows give."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks import ROOT
from benchmarks.quality import comparison, rows
from benchmarks.quality.page import RESULTS, TEXT
from benchmarks.quality.rows import Cell
from benchmarks.quality.tasks import TASKS

SCREEN = (ROOT / "README.md").read_text().partition("## What it does")[0]
EQUAL_SECONDS = "plain, equal seconds"
WAYS = ("validation", "stopped", "start")  # tuned; tuned, stopped early; not tuned
ROWS = {
    "2, cities": "reviews-2x99",
    "2, papers": "reviews-2x99-papers",
    "2, numbers": "reviews-2x99-numbers",
    "3": "reviews-3x99",
    "4": "reviews-4x99",
    "2, right in 90%": "reviews-2x90",
}


@cache
def lines(task, way, metric="test"):
    found = comparison.lines(TASKS[task], rows.read(rows.path(RESULTS, task)), way, metric)
    return {line.cell: line for line in found}


def gain(task, arm, way, *, mixed=False, metric="test", over="equal steps"):
    return lines(task, way, metric)[Cell(arm, mixed)].gains[over]


def points(share, sign="+"):
    return f"{100 * share:{sign}.1f}"


def interval(gain):
    return f"{points(gain.mean)} ({points(gain.low)} to {points(gain.high)})".replace("-0.0", "0.0")


def quoted():
    """Each gain of the table, as (task, arm, way)."""
    columns = [("variance", "validation"), ("variance", "stopped"), ("variance", "start"), ("Reptile", "stopped")]
    return [(task, *column) for task in ROWS.values() for column in columns]


@pytest.mark.parametrize(("name", "task"), ROWS.items())
def test_a_row_of_the_table(name, task):
    plain = lines(task, "validation")[Cell("plain")].mean
    gains = [points(gain(*cell).mean) for cell in quoted() if cell[0] == task]
    assert f"| {' | '.join([name, points(plain, ''), *gains])} |\n" in SCREEN


def test_the_table_has_every_task_on_text():
    assert set(ROWS.values()) == set(TEXT)


def test_gains_are_clear_and_nearly_as_large_at_equal_passes():
    assert all(gain(*cell).clear for cell in quoted())
    smaller = max(gain(*cell).mean - gain(*cell, over="equal passes").mean for cell in quoted())
    assert f"Over plain training with as many passes they are {points(smaller, '')} smaller at most." in SCREEN


def test_the_control_with_sources_mixed():
    largest = max(gain(task, "variance", way, mixed=True).mean for task in TEXT for way in WAYS)
    assert f"`variance` gains {points(largest, '')} at most: it is the sites." in SCREEN


def test_what_costs_less():
    last = max(gain(task, "Reptile", way).mean for task in TEXT for way in ("validation", "start"))
    mixed = max(gain(task, "Reptile", way, mixed=True).mean for task in TEXT for way in WAYS)
    assert f"it gains {points(last, '')} at most, and with the reviews mixed as much as {points(mixed, '')}" in SCREEN
    tuned, stopped, untuned = ([gain(task, "Fishr", way).mean for task in TEXT] for way in WAYS)
    said = "gains {} to {}, stopped early {} to {}; not tuned it loses {} to {}."
    ends = [
        points(abs(end), "") for end in (min(tuned), max(tuned), min(stopped), max(stopped), max(untuned), min(untuned))
    ]
    assert max(untuned) < 0
    assert said.format(*ends) in SCREEN


def test_the_first_layer_of_a_perceptron():
    found = [points(gain("reviews-2x99-mlp", "cosine, first layer", way).mean, "") for way in WAYS]
    assert "`cosine` gains {}, stopped early {}, not tuned {}.".format(*found) in SCREEN


def test_reviews_without_added_sentences():
    changes = [gain(task, "variance", "validation", metric="clean_test").mean for task in TEXT]
    assert f"accuracy changes by {points(min(changes))} to {points(max(changes))}." in SCREEN


def test_an_encoder_that_is_fine_tuned():
    tuned = [gain("reviews-2x99-bert", arm, "validation") for arm in ("variance", "cosine")]
    untuned = [gain("reviews-2x99-bert", arm, "start") for arm in ("variance", "cosine")]
    assert not any(found.clear for found in tuned)
    said = "`variance` {} and `cosine` {} tuned, not clear; not tuned {} and {}."
    far = [f"{points(found.mean)} ({'clear' if found.clear else 'not clear'})" for found in untuned]
    assert said.format(*map(interval, tuned), *far) in SCREEN
    others = [gain("reviews-2x99-bert", arm, "validation") for arm in ("dot", "weight decay", "Fishr", "IRMv1")]
    assert not any(found.clear for found in others)
    worse = [gain("reviews-2x99-bert", arm, "validation") for arm in ("norm", "Reptile", "FOMAML")]
    assert all(found.clear and found.mean < 0 for found in worse)
    assert "`dot`, weight decay, Fishr and IRMv1 show no difference; `norm`, Reptile and FOMAML lose." in SCREEN
    plain, longer = (lines("reviews-2x99-bert", "validation")[Cell(arm)].mean for arm in ("plain", EQUAL_SECONDS))
    below = [gain("reviews-2x99-bert", arm, "validation", over="equal seconds") for arm in ("variance", "cosine")]
    assert all(found.clear and found.mean < 0 for found in below)
    said = "Plain training for as many seconds is {} better, which `variance` and `cosine` are clearly below."
    assert said.format(points(longer - plain, "")) in SCREEN


def test_colour_codes():
    means = [gain(f"sprites-{n}", "Reptile", "validation") for n in (5, 10, 20, 50)]
    assert [found.clear for found in means] == [True, False, False, False]
    assert f"Reptile gains {points(means[0].mean, '')} with five domains" in SCREEN
    found = [lines(f"sprites-{n}", "validation") for n in (10, 20, 50)]
    longer = [by_cell[Cell("plain, equal passes")].mean - by_cell[Cell("plain")].mean for by_cell in found]
    assert f"twice the steps gain {100 * min(longer):.0f} to {100 * max(longer):.0f}." in SCREEN
