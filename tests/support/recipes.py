"""The code of docs/trainers.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"


def recipe(title):
    """The names that the first block of a section defines."""
    section = re.split(rf"^#+ {re.escape(title)}\n", PAGE.read_text(), flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    names = {"__name__": "docs.trainers"}
    code = re.search(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1]
    exec(compile(code, title, "exec", dont_inherit=True), names)
    return names
