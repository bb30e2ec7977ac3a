"""The recipes of docs/trainers.md where `GradAlign` does the accumulation inside another library's loop."""

from __future__ import annotations

import pytest
import torch
from support.recipes import recipe

import gradalign

WEIGHT, K = 0.03, 4


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
