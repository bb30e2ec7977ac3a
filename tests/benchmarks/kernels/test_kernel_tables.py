from __future__ import annotations

import re

from support.rows import kernel_result, kernel_row

from benchmarks.kernels import tables


def unpadded(table):
    return re.sub(" +", " ", table)


def test_the_table_of_ops():
    rows = [
        kernel_row("one tensor", "y += a x", "torch", 10, 1.0),
        kernel_row("one tensor", "perturb_", "native", 10, 0.934),
        kernel_row("one tensor", "perturb_", "reference", 10, 0.1),
    ]
    text = unpadded(tables.of_ops([kernel_result("ops", *rows)]))
    assert text.startswith("a CPU, 2 threads, torch 2.13.0, 2026-01-02:\n\n| op | one tensor, fp32 |")
    assert "| perturb_ | 0.93 |" in text
    assert "| y += a x, GB/s | 50 |" in text
    assert "reference" not in text


def test_the_table_of_optimizers():
    rows = [
        kernel_row("small", "AdamW", "torch fused", 30, 1.0),
        kernel_row("small", "AdamW", "native", 20, 1.0),
        kernel_row("small", "AdamW", "torch fused, None", 40, 1.0),
        kernel_row("small", "AdamW", "native, None", 10, 1.0),
        kernel_row("small", "other", "torch foreach", 10, 1.0),
    ]
    text = unpadded(tables.of_optimizers([kernel_result("optimizers", *rows)]))
    assert "| AdamW | fused | 1.50 |" in text
    assert "| AdamW | fused, gradients set to None | 4.00 |" in text
    assert "other" not in text
