from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is fetched
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(scripts, tmp_path_factory, monkeypatch):
    """An importer of the examples by name, for a test without network and with a cache of its own."""
    importer = scripts(EXAMPLES)
    import datasets
    import transformers

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))  # in no folder of data
    verbosity = transformers.logging.get_verbosity()
    yield importer
    transformers.logging.set_verbosity(verbosity)  # the examples ask for less of it
    transformers.logging.enable_progress_bar()
    datasets.enable_progress_bars()
