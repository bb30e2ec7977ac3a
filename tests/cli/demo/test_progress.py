import io

from rich.console import Console

from gradalign.cli.demo.progress import ProgressBar


def test_the_bar_shows_steps_done_of_all_steps_and_added_ones():
    text = io.StringIO()
    with ProgressBar(Console(file=text, force_terminal=True, width=100), steps=3) as progress:
        progress.describe("seed 1 of 2")
        progress.advance()
        progress.add_steps(2)
    assert "seed 1 of 2" in text.getvalue()
    assert "1/5" in text.getvalue()


def test_the_bar_counts_other_things_and_can_be_told_how_many_are_done():
    text = io.StringIO()
    with ProgressBar(Console(file=text, force_terminal=True, width=100), 3, "texts") as progress:
        progress.reach(2)
    assert "2/3" in text.getvalue()
    assert "texts" in text.getvalue()
