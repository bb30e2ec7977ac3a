"""The recipes of docs/trainers.md where `GradAlign` does the accumulation inside another library's loop."""

from __future__ import annotations

import ast
import difflib

import pytest
import torch
from support.recipes import recipe, source

import gradalign

WEIGHT, K = 0.003, 4


def make_net():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


def make_batches():
    return torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(2))


def square(net, x):
    return net(x).square().mean()


def own_loop(weight=WEIGHT, lr=1e-3):
    """The parameters after a loop without any of these libraries."""
    net = make_net()
    optimizer = gradalign.optim.AdamW(net.parameters(), lr=lr, max_grad_norm=1.0)
    aligner = gradalign.GradAlign(net, weight=weight, objective="variance")
    for batch in make_batches():
        aligner.backward(lambda x: square(net, x), gradalign.chunk(batch, K))
        optimizer.step()
        optimizer.zero_grad()
    return flat(net)


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_accelerate(tmp_path):
    net = make_net()
    batches = torch.utils.data.DataLoader(make_batches().flatten(0, 1), batch_size=16)
    accelerator, aligner = recipe("Accelerate with large batches")["train"](net, square, batches, k=K)
    assert torch.equal(flat(net), own_loop())
    accelerator.save_state(str(tmp_path))
    aligner.load_state_dict({"num_steps": 0})
    accelerator.load_state(str(tmp_path))
    assert aligner.num_steps == 4


@pytest.fixture
def accelerator():
    import accelerate
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(True)


def test_the_documented_behaviour_with_accelerate(accelerator):
    net = make_net()
    own = gradalign.optim.AdamW(net.parameters(), master_weights=True)
    model, prepared = accelerator.prepare(net, own)
    aligner = gradalign.GradAlign(model, weight=WEIGHT, optimizer=prepared)
    micro_batches = gradalign.chunk(make_batches()[0], K)
    norms = []
    for backward in (None, accelerator.backward, lambda loss: accelerator.backward(loss)):
        aligner.backward(lambda x: square(model, x), micro_batches, backward=backward)
        norms.append(float(aligner.stats.grad_norm))
        net.zero_grad()
    assert norms[1] == pytest.approx(norms[0])
    assert norms[2] == pytest.approx(norms[0] / 2)  # behind a lambda the division is not seen
    with accelerator.accumulate(model):
        aligner.backward(lambda x: square(model, x), micro_batches, backward=accelerator.backward)
        prepared.step()
        prepared.zero_grad()
    with pytest.raises(ValueError, match="expected every .grad to be None on entry"):
        aligner.backward(lambda x: square(model, x), micro_batches, backward=accelerator.backward)


def fit(module, plugins=(), **kwargs):
    import lightning

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", plugins=list(plugins), **quiet)
    trainer.fit(module, torch.utils.data.DataLoader(make_batches().flatten(0, 1), batch_size=16), **kwargs)
    return trainer


def test_lightning(tmp_path):
    module = recipe("Lightning with large batches")["Aligned"](make_net(), k=K)
    trainer = fit(module)
    assert torch.equal(flat(module.net), own_loop())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = recipe("Lightning with large batches")["Aligned"](make_net(), k=K)
    fit(resumed, ckpt_path=tmp_path / "run.ckpt")  # of an epoch that is over: it only loads
    assert resumed.aligner.num_steps == 4


def test_lightning_with_a_loss_scale():
    from lightning.pytorch.plugins.precision import MixedPrecision

    plain = recipe("Lightning with large batches")["Aligned"](make_net(), k=K)
    fit(plain)
    module = recipe("Lightning with large batches")["Aligned"](make_net(), k=K)
    fit(module, [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))])
    assert float(module.aligner.stats.grad_norm) == pytest.approx(float(plain.aligner.stats.grad_norm), rel=0.2)
    assert module.aligner.stats.radius == 0.03


# The script of a user of the Trainer, before gradalign.
PLAIN = """
from transformers import Trainer, TrainingArguments


def train(model, train_dataset, output_dir):
    args = TrainingArguments(
        output_dir, per_device_train_batch_size=2, gradient_accumulation_steps=8, learning_rate=1e-3, logging_steps=1
    )
    trainer = Trainer(model=model, args=args, train_dataset=train_dataset)
    trainer.train()
    return trainer
"""


def logical_lines(code):
    """The statements of a script, one line each, however they are wrapped; `pass` is on the line of its class."""

    def of(body):
        for statement in body:
            inner = getattr(statement, "body", None)
            first, *_ = ast.unparse(statement).splitlines()
            yield first if inner is None else f"{first} {'pass' if isinstance(inner[0], ast.Pass) else ''}"
            yield from of([s for s in inner or () if not isinstance(s, ast.Pass)])

    return list(of(ast.parse(code).body))


def test_at_most_three_lines_of_a_script_change():
    before, after = logical_lines(PLAIN), logical_lines(source("Hugging Face Trainer"))
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    changed = [after[c:d] or before[a:b] for kind, a, b, c, d in blocks if kind != "equal"]
    assert [len(lines) for lines in changed] == [2, 1]
    assert "import GradAlignMixin" in changed[0][0]


@pytest.mark.slow
def test_both_scripts_train(tmp_path, monkeypatch):
    import transformers

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    plain = {"__name__": "plain"}
    exec(compile(PLAIN, "plain", "exec"), plain)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(32, (32, 6))]
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 32, "n_positions": 8}
    for train in (plain["train"], recipe("Hugging Face Trainer")["train"]):
        config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
        trainer = train(transformers.GPT2LMHeadModel(config), rows, str(tmp_path))
        assert trainer.state.global_step == 6
    assert trainer.aligner.stats.passes == 10
