"""The pages of evidence are what the committed rows give, and what a summary recommends takes no account of the test."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.quality import comparison, page, plot, rows
from benchmarks.quality.rows import TUNING_SEEDS
from benchmarks.quality.task import Task
from benchmarks.quality.training import Job

TASK = Task("toy", "a toy", lambda seed, mixed: None, True, "sgd", (0.1, 0.3), steps=4, evaluate_every=2, ramp=2)
SEEDS = range(10)


def row(arm, seed, validation, test, value=0.0, passes=4, mixed=False):
    found = {"validation": validation, "source_validation": 0.5, "test": test}
    job = Job(arm, mixed, 0.1, value, seed, 4)._asdict()
    curve = [[2, test - 0.1], [4, test]]
    return {**job, "kind": "run", "passes": passes, "final": found, "stopped": {"step": 2, **found}, "curve": curve}


def arm_rows(arm, validation, test, **other):
    """A little of it different in every seed."""
    return [row(arm, seed, validation, test + 0.001 * (seed % 3), **other) for seed in (*TUNING_SEEDS, *SEEDS)]


@pytest.fixture
def read():
    return [
        *arm_rows("plain", 0.6, 0.6),
        *arm_rows("cosine", 0.8, 0.7, value=0.3, passes=8),
        *arm_rows("variance", 0.7, 0.9, value=1.0, passes=8),
        *arm_rows("cosine", 0.9, 0.95, value=0.3, passes=8, mixed=True),
        *arm_rows("Reptile", 0.6, 0.7, value=0.5),
        *arm_rows("SAM", 0.6, 0.61, value=0.05, passes=8),
        *arm_rows("plain, equal passes", 0.6, 0.6, passes=8),
    ]


def test_the_pages_are_what_the_rows_give():
    found = page.results(page.RESULTS)
    for name in page.PAGES:
        text = (page.DOCS / name).read_text()
        assert page.written(name, text, found) == text, "run python -m benchmarks.quality.page"


def test_the_objective_is_chosen_on_validation_data_and_among_sources_apart(read):
    assert page.best(TASK, read).cell == rows.Cell("cosine")


def test_a_line_of_the_summary(read):
    situation, objective, start, plain, passes, untuned, cost, cheaper = page.summary_line(TASK, read)
    assert (situation, objective, start, cost) == ("a toy (`toy`)", "`cosine`", "weight (none) 0.3, lr 0.1", "2")
    assert plain == passes == untuned == "+10.0 (+10.0 to +10.0)*"
    assert cheaper == "Reptile +0.0"
    worse = [*arm_rows("plain", 0.6, 0.6), *arm_rows("dot", 0.6, 0.5), *arm_rows("norm", 0.6, 0.5, passes=3)]
    assert (
        page.summary_line(TASK, worse)[1] == "plain training; the best objective was `norm`"
    )  # as good in 3 passes of 4


def test_an_arm_with_fewer_seeds_says_so(read):
    short = [found for found in read if found["arm"] != "cosine" or found["mixed"] or found["seed"] not in (8, 9)]
    title, table, _ = comparison.text(TASK, short).split("\n\n")
    assert title == "toy: a toy; 10 seeds, fewer where n is given"
    counts = {line.split("|")[1].strip(): line.count("(n=8)") for line in table.splitlines()[2:]}
    assert counts == {name: 4 if name == "cosine" else 0 for name in counts}
    assert page.summary_line(TASK, short)[1] == "`cosine` (n=8)"
    assert "n=" not in comparison.text(TASK, read)


def test_figures_of_runs_that_diverged_are_short():
    assert comparison.number(0.123, 100, "+") == "+12.3"
    assert comparison.number(-1.2345, 1) == "-1.234"
    assert comparison.number(-1.2e15, 1, "+") == "-1.2e+15"


def test_the_block_of_a_page_is_replaced_and_found_again(read):
    empty = "a\n<!-- rows:start -->\nold\n<!-- rows:end -->\nb"
    once = page.written("evidence-arms.md", empty, {TASK: read})
    assert "old" not in once
    assert "## toy\n\na toy; 10 seeds." in once
    assert page.written("evidence-arms.md", once, {TASK: read}) == once
    blocks = "".join(f"<!-- {name}:start -->\nold\n<!-- {name}:end -->\n" for name in page.PAGES["evidence.md"])
    several = page.written("evidence.md", blocks, {TASK: read})
    assert "old" not in several
    assert "| a toy (`toy`) |" in several
    with pytest.raises(ValueError, match=r"evidence.md: expected <!-- text:start --> and <!-- text:end -->, once each"):
        page.written("evidence.md", blocks.replace("<!-- text:end -->", ""), {TASK: read})


def test_a_table_of_gains_by_arm(read):
    group = page.Group(("toy",), ("cosine", "SAM", "plain, equal passes", "Fishr"))
    other = dataclasses.replace(TASK, name="another")
    header, _, *body = group({TASK: read, other: read}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *body)]
    assert cells == [
        ["task", "chosen", "plain", "cosine", "SAM", "plain, equal passes", "Fishr"],
        ["`toy`", "tuned", "60.1", "+10.0*", "+1.0*", "+0.0", ""],
        ["`toy`", "tuned, stopped early", "60.1", "+10.0*", "+1.0*", "+0.0", ""],
        ["`toy`", "untuned", "60.1", "+10.0*", "+1.0*", "+0.0", ""],
        ["`toy`", "tuned, sources mixed", "60.1", "+35.0*", "", "", ""],
    ]


def test_every_task_is_in_one_table_of_gains():
    groups = [block for block in page.PAGES["evidence.md"].values() if isinstance(block, page.Group)]
    assert sorted(name for group in groups for name in group.tasks) == sorted(page.TASKS)


def test_the_figure_shows_means_over_seeds(read, tmp_path):
    pytest.importorskip("matplotlib")
    (first, low), (last, high) = plot.points(TASK, read, "cosine")
    assert (first, last) == (2, 4)
    assert (low, high) == (pytest.approx(0.6009), pytest.approx(0.7009))
    rows.append(rows.path(tmp_path, "toy"), read)
    assert plot.draw(TASK, tmp_path).read_bytes()[:4] == b"\x89PNG"
