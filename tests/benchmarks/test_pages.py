"""The tables in README.md and in docs/ are those that the results give."""

from __future__ import annotations

import json

import pytest
from support.rows import HEADLINE, failed, kernel_result, kernel_row, result, row, split

from benchmarks import ROOT, pages


def test_the_pages_have_the_tables_of_the_results():
    assert pages.differing() == {}, "run python -m benchmarks.pages"


@pytest.mark.parametrize(
    ("line", "method", "model"),
    [
        ("| `weight=0` |", "weight 0", "mlp"),
        ("| `split` m = k/4, `dot` |", "split m=k/4", "mlp"),
        ("| `split` m = k/4, `variance` |", "split m=k/4, variance", "mlp"),
        ("| `leave_one_out` | 2.00 |", "leave_one_out", "mlp"),
        ("| `prefix` | 1.88 |", "prefix", "mlp"),
        ("| BERT-tiny 8 x 8 x 64, `split`, `dot` |", "split m=k/4", "bert-tiny"),
        ("| linear layer, `weight=0` |", "weight 0", "linear"),
        ("| linear layer, `Reptile` |", "Reptile", "linear"),
        ("| linear layer, `split`, `variance` |", "split m=k/4, variance", "linear"),
        ("| linear layer, `leave_one_out`, `variance` |", "leave_one_out, variance", "linear"),
    ],
)
def test_the_host_times_are_those_of_the_results(line, method, model):
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    (found,) = [text for text in page.splitlines() if text.startswith(line)]
    rows = map(json.loads, (pages.RESULTS / "host.jsonl").read_text().splitlines())
    (ratio,) = [r["ratio"] for r in rows if r.get("method") == method and r["workload"]["model"] == model]
    assert found.split("|")[3].strip() == f"{ratio:.2f}"


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
