import json
import shutil
from pathlib import Path

import pytest
import torch
from support.fresh_process import fresh_python
from torch import nn

from gradalign.cli.errors import CommandError
from gradalign.cli.workload.data import Snippet
from gradalign.cli.workload.model import Classifier, Collator, load_pretrained

CPU = torch.device("cpu")
SNIPPETS = [Snippet("A wonderful film.", 0, "a"), Snippet("A long, dull and predictable mess of a film.", 1, "b")]


@pytest.fixture(scope="module")
def bert(asset):
    asset("bert-tiny")
    return load_pretrained("bert-tiny")


def test_bert_tiny_is_the_pretrained_encoder_without_a_pooler(bert):
    encoder, _ = bert
    assert sum(p.numel() for p in encoder.parameters()) == 4_369_408
    assert encoder.config.hidden_size == 128
    assert encoder.pooler is None


def test_padding_changes_no_logits(bert):
    encoder, tokenizer = bert
    model = Classifier(encoder, 128, 2).eval()
    collate = Collator(tokenizer, SNIPPETS, CPU)
    with torch.no_grad():
        together = collate([0, 1])
        logits = model(together["input_ids"], together["attention_mask"])
        alone = [model(batch["input_ids"], batch["attention_mask"]) for batch in (collate([0]), collate([1]))]
    assert together["attention_mask"][0].sum() < together["input_ids"].shape[1]
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_the_classifier_averages_the_token_states():
    class States(nn.Module):
        def forward(self, input_ids, attention_mask):
            return type("Output", (), {"last_hidden_state": input_ids.unsqueeze(-1).float()})

    model = Classifier(States(), 1, 1)
    nn.init.ones_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    logits = model(torch.tensor([[2, 4, 9]]), torch.tensor([[1, 1, 0]]))
    assert logits.item() == 3.0  # (2 + 4) / 2: the last token is padding


def test_batches_by_length_hold_every_text_once(bert):
    snippets = [Snippet("word " * n, n % 2, "") for n in (9, 1, 5, 3, 7)]
    batches = Collator(bert[1], snippets, CPU).by_length(2)
    assert [b["attention_mask"].sum(1).tolist() for b in batches] == [[3, 5], [7, 9], [11]]  # with [CLS] and [SEP]
    assert [b["input_ids"].shape[1] for b in batches] == [5, 9, 11]


def test_a_directory_can_be_given(asset, bert):
    encoder, _ = load_pretrained(str(asset("bert-tiny")))
    for a, b in zip(encoder.parameters(), bert[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_directory_without_a_model_is_reported(tmp_path):
    with pytest.raises(
        CommandError, match=r"--model: expected bert-tiny, minilm, a directory or a Hugging Face name.*; got '"
    ):
        load_pretrained(str(tmp_path))


def test_the_source_tree_is_not_taken_for_another_package(asset):
    """transformers imports whatever top-level package is called `kernels`; in the source tree that would be ours."""
    asset("bert-tiny")
    root = Path(__file__).resolve().parents[3]
    load = "from gradalign.cli.workload.model import load_pretrained; load_pretrained('bert-tiny')"
    script = f"import sys; {load}; print(sys.modules['kernels'])"
    done = fresh_python("-c", script, cwd=root)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


@pytest.fixture
def own_code(asset, tmp_path, monkeypatch):
    """A copy of the model to change, whose code of its own would leave a file; a question on the terminal fails the test."""
    model, marker = tmp_path / "model", tmp_path / "it ran"
    shutil.copytree(asset("bert-tiny"), model)
    (model / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    monkeypatch.setattr("signal.alarm", lambda seconds: pytest.fail("a prompt") if seconds else 0)
    yield model
    assert not marker.exists()


def add_settings(path, **changed):
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, **changed}))


def test_a_model_with_code_of_its_own_is_refused(own_code):
    auto_map = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    add_settings(own_code / "config.json", model_type="own", auto_map=auto_map)
    with pytest.raises(CommandError) as caught:
        load_pretrained(str(own_code))
    assert str(caught.value).startswith("--model: expected bert-tiny")
    assert str(caught.value).endswith(
        ": it comes with custom code; gradalign does not run code that comes with a model"
    )


def test_a_tokenizer_with_code_of_its_own_is_not_run(own_code):
    auto_map = {"AutoTokenizer": ["own.Own", None]}
    add_settings(own_code / "tokenizer_config.json", tokenizer_class="Own", auto_map=auto_map)
    load_pretrained(str(own_code))  # without it, transformers has one for this kind of model
