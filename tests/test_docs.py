"""Every ```python block of README.md and docs/ runs (```py is an excerpt); the blocks of a page share their names."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import gradalign
from gradalign.engine.given_once import GivenOnce

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=lambda p: p.name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "docs"}
    blocks = BLOCK.findall(page.read_text())
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    assert any("gradalign" in block for block in blocks)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_exist(name):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^)make ([\w-]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert {"demo", "test", "lint"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize(
    "name", ["split m=k/4", "split m=k/4, variance", "leave_one_out", "double backward", "pytorch_optimizer SAM"]
)
def test_the_first_screen_quotes_the_measured_table(name):
    first_screen, _, table = (ROOT / "README.md").read_text().partition("## What it does")
    found = re.search(rf"^\| {re.escape(name)} +\| +([\d.]+) .*\(\+(\d+) MB\)", table, re.MULTILINE)
    ratio, megabytes = found[1], int(found[2])
    memory = f"{megabytes / 1000:.1f} GB" if megabytes >= 500 else f"{megabytes} MB"
    assert re.search(rf"\b{re.escape(ratio)}\b.*\b{memory}\b", first_screen)


def test_files_that_the_recipes_name_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:gradalign|kernels|csrc|tests|benchmarks|docs)/[\w./]+)`", text)
    assert len(set(paths)) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_relative_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def directives():
    """What docs/api.md asks mkdocstrings for: the name, and the text of its options."""
    found = re.findall(r"^::: (\S+)\n((?: {4}.*\n)*)", (ROOT / "docs" / "api.md").read_text() + "\n", re.MULTILINE)
    return dict(found)


def public_names():
    """Every name that the package and its public modules offer, modules themselves included."""
    for module in (gradalign, gradalign.optim, gradalign.baselines, gradalign.ops):
        for name in module.__all__:
            if not name.startswith("__"):
                yield f"{module.__name__}.{name}"
    yield from (f"gradalign.estimators.{estimator.__name__}" for estimator in gradalign.estimators.ESTIMATORS.values())


def test_every_public_name_is_on_the_api_page():
    listed = directives()
    whole = {name for name, options in listed.items() if " members:" not in options}
    missing = [name for name in public_names() if name not in listed and name.rpartition(".")[0] not in whole]
    assert not missing
    for name in listed:
        parent, _, last = name.rpartition(".")
        assert name == "gradalign" or hasattr(importlib.import_module(parent), last), name


def own_members(cls):
    """Public methods and properties of ours, inherited ones included; no arguments that stand in an attribute's place."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("gradalign.")]
    members = ((name, value) for base in ours for name, value in vars(base).items() if not isinstance(value, GivenOnce))
    return {name for name, _ in members if not name.startswith("_")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_built_api_page_has_every_name_and_member(site):
    built = set(re.findall(r'id="(gradalign[^"]*)"', (site / "api" / "index.html").read_text()))
    classes = [gradalign.GradAlign, gradalign.Accumulation, gradalign.AlignmentStats, gradalign.TuningResult]
    fields = {f.name for cls in classes if is_dataclass(cls) for f in dataclass_fields(cls)}
    members = {f"gradalign.{cls.__name__}.{name}" for cls in classes for name in own_members(cls) - fields}
    members |= {f"gradalign.optim.FusedOptimizer.{name}" for name in own_members(gradalign.optim.FusedOptimizer)}
    assert {*public_names(), *members, "gradalign.telemetry.plot_tasks"} - built == set()
    assert not any(name.endswith(".OptimizerPreHook") or "register_" in name for name in built)


def test_formulas_are_marked_for_mathjax_and_mathjax_is_loaded():
    yaml = pytest.importorskip("yaml")
    config = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    extensions = {k: v for item in config["markdown_extensions"] if isinstance(item, dict) for k, v in item.items()}
    assert extensions["pymdownx.arithmatex"] == {"generic": "true"}
    settings, library = config["extra_javascript"]
    text = (ROOT / "docs" / settings).read_text()
    assert re.search(r"window\.MathJax\s*=", text)
    assert 'processHtmlClass: "arithmatex"' in text
    assert re.fullmatch(r"https://\S+/mathjax@3/\S+\.js", library)


@pytest.mark.slow
def test_a_built_page_has_formulas_and_both_scripts(site):
    page = (site / "radius" / "index.html").read_text()
    assert '<div class="arithmatex">\\[' in page
    assert '<span class="arithmatex">\\(' in page
    settings, library = (page.index(name) for name in ("javascripts/mathjax.js", "mathjax@3/es5/tex-mml-chtml.js"))
    assert settings < library  # MathJax reads its settings when it is loaded


def test_every_environment_variable_is_documented():
    sources = [p for folder in ("gradalign", "csrc", "kernels") for p in (ROOT / folder).rglob("*.*")]
    read = re.compile(r'(?:environ(?:\.get\(|\[)|getenv\()"(\w+)"')
    names = {name for p in sources if p.suffix in (".py", ".h", ".cpp") for name in read.findall(p.read_text())}
    names -= {"HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "KINETO_LOG_LEVEL"}  # set for others, not read
    assert {"GRADALIGN_NATIVE", "GRADALIGN_CACHE_DIR", "GRADALIGN_CPU_ISA"} <= names
    page = (ROOT / "docs" / "install.md").read_text()
    assert [name for name in sorted(names) if f"`{name}`" not in page and f"${name}" not in page] == []
