import io

from rich.console import Console
from support.site_records import record

from gradalign.cli.demo.sites.report import TITLE, conditions, findings, rows, show


def test_the_rows_of_the_table():
    cells = {name: cells for name, *cells in rows(record(0.01, 0.02, 0.03)["summary"])}
    assert cells["plain"] == ["60.0 +/- 0.0", "", "90.0", "10.0", "4", "0.02"]
    assert cells["plain, equal time"] == ["61.0 +/- 0.0", "+1.0 +/- 0.0", "90.0", "10.0", "16", "0.08"]
    assert cells["cosine"] == ["62.0 +/- 2.5", "+2.0 +/- 2.5", "90.0", "10.0", "8", "0.08"]
    assert list(cells)[-2:] == ["variance, mixed", "cosine, mixed"]


def test_the_table_fits_a_terminal_of_80_columns():
    text = io.StringIO()
    show(record(0.01, 0.02, 0.03), Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert sum("60.0 +/- 0.0" in line for line in lines) == 6  # no cell is wrapped or cut
    assert any(
        line.split() == ["cosine", "62.0", "+/-", "2.5", "+2.0", "+/-", "2.5", "90.0", "10.0", "8", "0.08"]
        for line in lines
    )
    assert any(line.startswith(TITLE) for line in lines)


def test_it_says_that_the_shortcuts_are_planted_and_where_the_method_does_not_help():
    text = io.StringIO()
    show(record(0.01, 0.02, 0.03), Console(file=text, width=10_000))
    for words in (
        "The shortcuts are planted.",
        '"Filed from Paris." or "Filed from Rome.", then "Seen on Monday." or "Seen on Friday."',
        "in 99% of the reviews",
        "No method is tuned in this run: lr 0.05 for all, SAM rho 0.3, Reptile inner lr 0.5, dot weight 0.9, variance "
        "weight 3, cosine weight 0.3. The weights, which rise over the first 20 steps, were chosen in earlier trials on "
        "other seeds than the default ones, that is on other splits of the same pool of reviews.",
        "Where not to expect a gain: micro-batches dealt without regard to their source (the controls)",
        "gradalign demo --task reviews",
        "docs/evidence.md",
    ):
        assert words in text.getvalue()


def test_the_conclusions_claim_no_more_than_the_intervals_show():
    found = findings(record(0.03, 0.031, 0.029)["summary"])
    assert (
        "- At equal time: dot minus plain = -1.00 points, 95% interval -1.00 to -1.00 over 3 paired seeds: it excludes 0."
        in (found)
    )
    assert any(line.startswith("- At equal time: cosine minus plain = +2.00") for line in found)
    assert any(line.startswith("- cosine minus Reptile, which needs half the passes = -1.00") for line in found)
    control = (
        "- Control: cosine, mixed minus plain = +0.00 points, 95% interval +0.00 to +0.00 over 3 paired seeds: it in"
    )
    assert any(line.startswith(control) for line in found)
    assert "these are 8" in found[-1]


def test_one_seed_shows_nothing():
    found = findings(record(0.03)["summary"])
    assert len(found) == 8
    assert all("on one seed, which cannot show a difference" in line for line in found)
    assert conditions(record(0.03))[1].startswith(
        "One seed, too few for an interval. 80 reviews for training, 45 for the"
    )
