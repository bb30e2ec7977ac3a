"""A commit is held to what `make lint` runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_ruff_and_mypy_check_for_the_oldest_python_that_is_claimed():
    text = (ROOT / "pyproject.toml").read_text()
    oldest = re.search(r'^requires-python = ">=3\.(\d+)"$', text, re.MULTILINE)[1]
    assert re.search(r'^target-version = "py3(\d+)"$', text, re.MULTILINE)[1] == oldest
    assert re.search(r'^python_version = "3\.(\d+)"', text, re.MULTILINE)[1] == oldest


def test_pre_commit_runs_the_commands_of_make_lint():
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    lint = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    assert [hook["entry"] for hook in hooks] == lint
    assert lint[0] == ".venv/bin/ruff check ."
    # On the whole tree, as make does: a name of a changed file would be checked without what imports it.
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)
