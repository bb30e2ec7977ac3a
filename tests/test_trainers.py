"""The recipes of docs/trainers.md for other libraries run where these are installed; the Trainer's step in a stand-in too."""

from __future__ import annotations

import contextlib
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import gradalign

PAGE = (Path(__file__).parents[1] / "docs" / "trainers.md").read_text()
WEIGHT, K = 0.03, 4


def recipe(title):
    """The names that the code of one section defines."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    names = {"__name__": "docs.trainers"}
    exec(compile(re.search(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1], title, "exec"), names)
    return names


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


class StandIn:
    """What a recipe for the Trainer asks of it."""

    def __init__(self, model, args):
        self.model, self.args = model, args
        self.accelerator = types.SimpleNamespace(backward=lambda loss: loss.backward())

    def _prepare_inputs(self, inputs):
        return dict(inputs)

    def compute_loss_context_manager(self):
        return contextlib.nullcontext()

    def compute_loss(self, model, inputs):
        inputs.pop("labels")  # as label smoothing does
        return square(model, inputs["x"])


def stand_in_trainer(monkeypatch, gradient_accumulation_steps=1):
    module = types.ModuleType("transformers")
    module.Trainer = StandIn
    monkeypatch.setitem(sys.modules, "transformers", module)
    args = types.SimpleNamespace(gradient_accumulation_steps=gradient_accumulation_steps)
    return recipe("Hugging Face Trainer")["AlignedTrainer"](make_net(), args, weight=WEIGHT, k=K)


def test_the_trainers_step_in_a_stand_in(monkeypatch):
    trainer = stand_in_trainer(monkeypatch)
    optimizer = gradalign.optim.AdamW(trainer.model.parameters(), lr=1e-3, max_grad_norm=1.0)
    for batch in make_batches():
        loss = trainer.training_step(trainer.model, {"x": batch, "labels": torch.zeros(16)})
        assert not loss.requires_grad
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(flat(trainer.model), own_loop())
    assert trainer.aligner.stats.passes == K + 1


def test_the_trainers_own_accumulation_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="gradient_accumulation_steps: expected 1, since GradAlign accumulates"):
        stand_in_trainer(monkeypatch, gradient_accumulation_steps=2)


class Rows(torch.nn.Module):
    """A model with the Trainer's way to be called."""

    def __init__(self):
        super().__init__()
        self.net = make_net()

    def forward(self, x, labels):
        return {"loss": self.net(x).sub(labels[:, None]).square().mean()}


@pytest.mark.parametrize("weight", [0.0, WEIGHT])
def test_hugging_face_trainer(weight, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def trained(cls, **kwargs):
        rows = [{"x": x, "labels": x.sum()} for x in make_batches().flatten(0, 1)]
        args = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=16,
            num_train_epochs=1,
            learning_rate=1e-2,
            dataloader_drop_last=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = cls(model=Rows(), args=args, train_dataset=rows, **kwargs)
        trainer.train()
        return trainer

    plain = flat(trained(transformers.Trainer).model)
    aligned = trained(recipe("Hugging Face Trainer")["AlignedTrainer"], weight=weight, k=K)
    assert aligned.aligner.num_steps == 4
    apart = float((flat(aligned.model) - plain).abs().max())
    assert apart < 1e-5 if weight == 0 else 1e-5 < apart < 0.1


def test_accelerate(tmp_path):
    pytest.importorskip("accelerate")
    net = make_net()
    batches = torch.utils.data.DataLoader(make_batches().flatten(0, 1), batch_size=16)
    accelerator, aligner = recipe("Accelerate")["train"](net, square, batches, k=K)
    assert torch.equal(flat(net), own_loop())
    accelerator.save_state(str(tmp_path))
    aligner.load_state_dict({"num_steps": 0})
    accelerator.load_state(str(tmp_path))
    assert aligner.num_steps == 4


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    yield accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(True)


def test_the_documented_behaviour_with_accelerate(accelerator):
    net = make_net()
    own = gradalign.optim.AdamW(net.parameters(), master_weights=True)
    model, prepared = accelerator.prepare(net, own)
    with pytest.raises(TypeError, match="expected an optimizer of gradalign.optim; got AcceleratedOptimizer"):
        gradalign.GradAlign(model, weight=WEIGHT, optimizer=prepared)
    aligner = gradalign.GradAlign(model, weight=WEIGHT, optimizer=own)
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
    pytest.importorskip("lightning")
    module = recipe("Lightning")["Aligned"](make_net(), k=K)
    trainer = fit(module)
    assert torch.equal(flat(module.net), own_loop())
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    resumed = recipe("Lightning")["Aligned"](make_net(), k=K)
    fit(resumed, ckpt_path=tmp_path / "run.ckpt")  # of an epoch that is over: it only loads
    assert resumed.aligner.num_steps == 4


def test_lightning_with_a_loss_scale():
    pytest.importorskip("lightning")
    from lightning.pytorch.plugins.precision import MixedPrecision

    plain = recipe("Lightning")["Aligned"](make_net(), k=K)
    fit(plain)
    module = recipe("Lightning")["Aligned"](make_net(), k=K)
    fit(module, [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))])
    assert float(module.aligner.stats.grad_norm) == pytest.approx(float(plain.aligner.stats.grad_norm), rel=0.2)
    assert module.aligner.stats.radius == 0.03
