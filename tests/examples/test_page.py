"""Every command of docs/examples.md and of the examples' own help is one that they take."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from support import tiny_models

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "examples.md").read_text()
RESULTS = ROOT / "benchmarks" / "results" / "examples"
COMMAND = re.compile(r"^(?: {4})?python examples/(\w+)\.py(.*)$", re.MULTILINE)


def commands(text):
    """Name of the example, and its arguments."""
    return [(name, shlex.split(rest)) for name, rest in COMMAND.findall(text.replace("\\\n", " "))]


ON_PAGE = commands(PAGE)
IN_HELP = [
    command
    for path in sorted((ROOT / "examples").glob("*.py"))
    if "training.parser(__doc__" in path.read_text()
    for command in commands(path.read_text().split('"""')[1])
]


@pytest.mark.parametrize(("name", "argv"), ON_PAGE + IN_HELP, ids=lambda x: x if isinstance(x, str) else "")
def test_every_command_is_taken(example, tmp_path, monkeypatch, name, argv):
    monkeypatch.chdir(tmp_path)  # --out makes folders
    example(name).parse([*argv, "--device=cpu"])


def value(argv, option):
    """The values of an option."""
    after = argv[argv.index(option) + 1 :] if option in argv else []
    return after[: next((i for i, x in enumerate(after) if x.startswith("--")), len(after))]


OF_TABLES = [(name, argv) for name, argv in ON_PAGE if any(x.endswith(".csv") for x in argv)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argv"), OF_TABLES, ids=lambda x: x if isinstance(x, str) else "")
def test_the_commands_behind_the_figures_run(example, tmp_path, monkeypatch, name, argv):
    """As they are, but for the files, the model and the number of steps and seeds."""
    monkeypatch.chdir(tmp_path)
    for file in value(argv, "--train") + value(argv, "--validation"):
        Path(file).parent.mkdir(exist_ok=True)
        rows = [f'"this is {("good", "bad")[i % 2]}, number {i}",{("fresh", "rotten")[i % 2]}' for i in range(300)]
        Path(file).write_text("\n".join(["text,label", *rows]))
    short = ["--steps=2", "--seeds=1", "--device=cpu"]
    if "--model" in argv:
        short.append(f"--model={tiny_models.save(tmp_path / 'model', 'bert')}")
    record = example(name).main([*argv, *short])
    assert set(record["runs"]) == set(value(argv, "--method"))


def shown(number, sign=""):
    """A mean with its interval."""
    return f"{number['mean']:{sign}.3f} ± {number['half_width']:.3f}"


def table(record, metrics):
    """The means of the methods, and their differences to the first, as a table."""
    rows = [["", *metrics], ["---"] * (1 + len(metrics))]
    for groups, sign in ((record["means"], ""), (record["differences"], "+")):
        rows += [[name, *(shown(values[metric], sign) for metric in metrics)] for name, values in groups.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.parametrize(("name", "metrics"), re.findall(r"^<!-- results of ([\w-]+): (.*) -->$", PAGE, re.MULTILINE))
def test_figures_are_those_of_the_runs(name, metrics):
    record = json.loads((RESULTS / f"{name}.json").read_text())
    written = PAGE.partition(f"<!-- results of {name}: {metrics} -->\n")[2].partition("\n\n")[0] + "\n"
    assert written == table(record, metrics.split())
    about = PAGE.partition(f"<!-- results of {name}:")[0].rpartition("```")[2]
    seeds = len(next(iter(record["runs"].values())))
    for fact in (record["date"][:10], f"{seeds} seeds", f"torch {record['versions']['torch']}", "CPU"):
        assert fact in about, fact
    (argv,) = [argv for example, argv in ON_PAGE if value(argv, "--out") == [f"{name}.json"]]
    settings = record["settings"]
    for option in ("--lr", "--steps", "--seeds", "--max-length", "--width", "--block-size", "--vocabulary", "--weight"):
        for text in value(argv, option):
            assert float(text) == settings[option[2:].replace("-", "_")]
