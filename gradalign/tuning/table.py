"""Text tables with aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def percent(fraction: float) -> str:
    """Two significant digits, such as 0.013%."""
    return f"{100 * fraction:.2g}%" if fraction < 0.995 else f"{100 * fraction:.0f}%"


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows as lines with columns of equal width: first and last left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
