"""The tables in README.md and in docs/ are those that the results give."""

from __future__ import annotations

import json

import pytest
from support.rows import HEADLINE, failed, kernel_result, kernel_row, result, row, split

from benchmarks import pages


def test_the_pages_have_the_tables_of_the_results():
    assert pages.differing() == {}, "run python -m benchmarks.pages"


def write(folder, name, content):
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_table_is_made_of_the_results(tmp_path):
    write(tmp_path, "minilm", result(row(), split(), failed("prefix")))
    text = pages.cost(tmp_path)
    assert f"on {HEADLINE.name} (10.0M parameters, texts; a CPU, 2 threads, torch 2.13.0, 2026-01-02)" in text
    assert "| split m=k/4 | 1.25 (1.24 to 1.27) |" in text
    assert "+1.0 (+40 MB)" in text
    assert "prefix" not in text
    assert "slower or larger" not in text


def test_what_is_slower_or_larger_stands_in_the_documentation(tmp_path):
    write(tmp_path, "minilm", result(row(), split()))
    text = pages.shortfall_list(tmp_path)
    assert text.startswith(f"On {HEADLINE.name} (a CPU, 2 threads, torch 2.13.0, 2026-01-02):\n\n- plain takes")
    write(tmp_path, "minilm", result(split()))
    assert pages.shortfall_list(tmp_path) == ""


def test_of_two_results_for_one_headline_the_fuller_is_taken(tmp_path):
    write(tmp_path, "cpu", result(row(), split(), row("prefix", ratio=1.91), suite="cpu"))
    write(tmp_path, "minilm", result(row(), split()))
    write(tmp_path, "quick", result(*[row(str(i)) for i in range(9)], suite="quick"))
    write(tmp_path, "ops-cpu", kernel_result("ops", kernel_row("one tensor", "perturb_", "native", 10, 0.9)))
    assert [found["suite"] for found in pages.steps(tmp_path)] == ["cpu"]
    assert [found["suite"] for found in pages.kernels(tmp_path, "ops")] == ["ops"]


def test_without_results_the_markers_hold_nothing(tmp_path):
    empty = f"a\n{pages.BEGIN}\nold\n{pages.END}\nb\n"
    for text_of in pages.PAGES.values():
        assert pages.with_block(empty, text_of(tmp_path)) == f"a\n{pages.BEGIN}\n{pages.END}\nb\n"


def test_a_table_in_its_place_is_found_again(tmp_path):
    write(tmp_path, "minilm", result(row(), split()))
    text = pages.cost(tmp_path)
    once = pages.with_block(f"{pages.BEGIN}{pages.END}", text)
    assert pages.with_block(once, text) == once
    assert text in once


@pytest.mark.parametrize("readme", ["nothing", "<!-- bench:end --><!-- bench:start -->", "<!-- bench:start -->"])
def test_missing_markers_are_an_error(readme):
    with pytest.raises(
        ValueError, match=r"README\.md: expected <!-- bench:start --> and then <!-- bench:end -->, once each"
    ):
        pages.with_block(readme, "x")
