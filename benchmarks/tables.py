"""Markdown tables, and the line about the machine above them; needs neither torch nor gradalign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def as_markdown(header: Sequence[str], body: Sequence[Sequence[str]], num_text: int = 1) -> str:
    """A table whose columns line up: the first `num_text` are text, the others numbers."""
    widths = [max(3, *(len(row[i]) for row in (header, *body))) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < num_text else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i < num_text else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, body)])


def place(row: dict[str, Any]) -> str:
    """The machine, torch and the day of a row."""
    machine, versions = row["machine"], row["versions"]
    device = ", ".join(gpu["name"] for gpu in machine["gpus"]) or f"{machine['cpu']}, {machine['threads']} threads"
    return f"{device}, torch {versions['torch']}, {row['date'][:10]}"
