"""The whole command, with made-up features in place of the encoder's."""

import json

import matplotlib.image
import torch
from support.toy_demo import StepCounter
from support.toy_sites import SETTINGS, toy_features, toy_texts

from gradalign import cli
from gradalign.cli.demo.sites import comparison, data


def test_the_demo_prints_a_table_and_writes_plot_and_record(asset, tmp_path, capsys, monkeypatch):
    asset("rotten-tomatoes")
    asked = []

    def made_up(texts, model, progress):
        asked.append((len(texts), model))
        return toy_features(texts)

    monkeypatch.setattr(data, "features", made_up)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    sizes = ["--texts", "30", "--held-out", "20", "--steps", "2", "--seeds", "3", "--first-seed", "7"]
    assert cli.main(["demo", *sizes, "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
    text = capsys.readouterr().out
    assert "The shortcuts are planted." in text
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["settings"]["task"] == "sites"
    assert [s["seed"] for s in record["seeds"]] == [7, 8, 9]
    counts = record["seeds"][0]["data"]
    assert counts["train"] == 60
    assert counts["own"] >= 10  # the film that fills a part is taken whole
    assert counts["test"] >= 30
    assert [model for _, model in asked] == ["minilm"]  # once for all seeds
    assert record["summary"]["arms"]["plain"]["own"]["half_width"] is not None
    assert matplotlib.image.imread(tmp_path / "demo.png").std() > 0.05


def test_seeds_in_several_processes_give_what_they_give_in_one():
    texts = toy_texts()
    kept = toy_features(texts.distinct)
    parts = {seed: texts.of_seed(kept, seed) for seed in (4, 2)}

    class Counter(StepCounter):
        def reach(self, steps):
            self.done = steps

    counter = Counter()
    found = comparison.side_by_side(SETTINGS, parts, counter, jobs=2)
    expected = comparison.in_turn(SETTINGS, parts, StepCounter())
    assert list(found) == [4, 2]
    assert counter.done == 2 * SETTINGS.steps
    for seed, arms in expected.items():
        for name, arm in arms.items():
            if name != "plain, equal time":  # whose steps follow from measured times
                assert (found[seed][name]["test"], found[seed][name]["own"]) == (arm["test"], arm["own"])
