"""The tables in README.md and in docs/ are those that the results give."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from support.measured_rows import measured
from support.rows import HEADLINE, failed, result, row, split

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
assert SPEC is not None
readme_table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(readme_table)


def test_the_pages_have_the_tables_of_the_results():
    assert readme_table.differing() == {}, "run python benchmarks/readme_table.py"


def unpadded(table):
    return re.sub(" +", " ", table)


PLACE = {
    "date": "2026-01-02T00:00:00",
    "machine": {"cpu": "a CPU", "threads": 2, "gpus": []},
    "versions": {"torch": "2.13.0"},
}


def test_the_table_of_kernels(tmp_path):
    rows = [
        measured("one tensor", "y += a x", "torch", 10, 1.0),
        measured("one tensor", "perturb_", "native", 10, 0.934),
        measured("one tensor", "perturb_", "reference", 10, 0.1),
    ]
    write(tmp_path, "kernels-cpu", {**PLACE, "rows": rows})
    text = unpadded(readme_table.kernel_tables.of_kernels(tmp_path))
    assert text.startswith("a CPU, 2 threads, torch 2.13.0, 2026-01-02:\n\n| op | one tensor, fp32 |")
    assert "| perturb_ | 0.93 |" in text
    assert "| y += a x, GB/s | 50 |" in text
    assert "reference" not in text


def test_the_table_of_steps(tmp_path):
    rows = [
        measured("small", "AdamW", "torch fused", 30, 1.0),
        measured("small", "AdamW", "native", 20, 1.0),
        measured("small", "AdamW", "torch fused, None", 40, 1.0),
        measured("small", "AdamW", "native, None", 10, 1.0),
        measured("small", "other", "torch foreach", 10, 1.0),
    ]
    write(tmp_path, "optim-cpu", {**PLACE, "rows": rows})
    text = unpadded(readme_table.kernel_tables.of_steps(tmp_path))
    assert "| AdamW | fused | 1.50 |" in text
    assert "| AdamW | fused, gradients set to None | 4.00 |" in text
    assert "other" not in text


def write(folder, name, content):
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_the_table_is_made_of_the_results(tmp_path):
    write(tmp_path, "minilm", result(row(), split(), failed("prefix")))
    text = readme_table.block(tmp_path)
    assert f"on {HEADLINE.name} (10.0M parameters, texts; a CPU, 2 threads, torch 2.13.0, 2026-01-02)" in text
    assert "| split m=k/4 | 1.25 (1.24 to 1.27) |" in text
    assert "+1.0 (+40 MB)" in text
    assert "Where gradalign is slower or larger:\n\n- plain takes" in text
    assert "prefix" not in text


def test_of_two_results_for_one_headline_the_fuller_is_taken(tmp_path):
    write(tmp_path, "cpu", result(row(), split(), row("prefix", ratio=1.91), suite="cpu"))
    write(tmp_path, "minilm", result(row(), split()))
    write(tmp_path, "quick", result(*[row(str(i)) for i in range(9)], suite="quick"))
    write(tmp_path, "kernels", {"machine": {}, "rows": []})
    assert [found["suite"] for found in readme_table.published(tmp_path)] == ["cpu"]


def test_without_results_the_markers_hold_nothing(tmp_path):
    empty = f"a\n{readme_table.BEGIN}\nold\n{readme_table.END}\nb\n"
    assert readme_table.with_block(empty, readme_table.block(tmp_path)) == (
        f"a\n{readme_table.BEGIN}\n{readme_table.END}\nb\n"
    )


def test_a_table_in_its_place_is_found_again(tmp_path):
    write(tmp_path, "minilm", result(row(), split()))
    text = readme_table.block(tmp_path)
    once = readme_table.with_block(f"{readme_table.BEGIN}{readme_table.END}", text)
    assert readme_table.with_block(once, text) == once
    assert text in once


@pytest.mark.parametrize("readme", ["nothing", "<!-- bench:end --><!-- bench:start -->", "<!-- bench:start -->"])
def test_missing_markers_are_an_error(readme):
    with pytest.raises(
        ValueError, match=r"README\.md: expected <!-- bench:start --> and then <!-- bench:end -->, once each"
    ):
        readme_table.with_block(readme, "x")
