"""The code of docs/trainers.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


def source(title):
    """The code of the first block of a section."""
    section = re.split(rf"^#+ {re.escape(title)}\n", PAGE.read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    return re.search(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1]


def recipe(title):
    """The names that it defines."""
    names = {"__name__": "docs.trainers"}
    exec(compile(source(title), title, "exec", dont_inherit=True), names)
    return names
