"""`GradAlignCallback` under automatic optimization: Lightning's own accumulation bit for bit without a weight."""

from __future__ import annotations

import copy
import csv
import io
import types
import warnings

import lightning
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from support.dataset import Rows
from support.recipes import recipe
from torch import nn

import gradalign
from gradalign.integrations.lightning import GradAlignCallback

K, OPTIONS = 3, {"weight": 0.1, "objective": "variance"}
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)


class Module(lightning.LightningModule):
    """Keeps metrics in every way that modules do."""

    def __init__(self, dropout=0.2, as_dict=False):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(dropout), nn.Tanh(), nn.Linear(16, 1))
        self.mean, self.as_dict = torchmetrics.MeanMetric(), as_dict
        self.calls, self.seen, self.outputs, self.backwards, self.autocast = 0, [], [], 0, False

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).square().mean()
        self.calls += 1
        self.seen.append(batch_idx)
        self.mean.update(loss.detach())
        self.log("loss", loss, on_step=False, on_epoch=True)
        return {"loss": loss, "rows": len(batch)} if self.as_dict else loss

    def backward(self, loss):
        self.autocast |= torch.is_autocast_enabled("cpu")
        super().backward(loss)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.outputs.append(float(outputs["loss"]))
        assert not self.as_dict or outputs["rows"] == 4

    def on_after_backward(self):
        self.backwards += 1

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2), "interval": "step"}]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from Rows(20).x


def loader(batches=7):
    return torch.utils.data.DataLoader(Rows(batches * 4), batch_size=4)


def fit(module, options=None, data=None, ckpt_path=None, **kwargs):
    callback = [] if options is None else [GradAlignCallback(options)]
    kwargs = {**QUIET, "max_epochs": 2, "accumulate_grad_batches": K, "gradient_clip_val": 1.0, **kwargs}
    trainer = lightning.Trainer(accelerator="cpu", callbacks=[*kwargs.pop("callbacks", []), *callback], **kwargs)
    torch.manual_seed(3)
    trainer.fit(module, loader() if data is None else data, ckpt_path=ckpt_path)
    return trainer, callback[0] if callback else None


def mixed(precision):
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2) if precision == "16-mixed" else None
    return {"plugins": [MixedPrecision(precision, "cpu", scaler=scaler)]}


PRECISIONS = {
    "32": dict,
    "bf16": lambda: mixed("bf16-mixed"),
    "16": lambda: mixed("16-mixed"),
    "64": lambda: {"precision": "64-true"},
}


def same(one, other):
    pairs = zip(one.net.state_dict().values(), other.net.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weight_0_is_lightnings_own_accumulation_bit_for_bit(precision):
    plain, aligned = Module(), Module(as_dict=precision == "32")
    fit(plain, **PRECISIONS[precision]())
    _, callback = fit(aligned, {"weight": 0.0}, **PRECISIONS[precision]())
    assert same(plain, aligned)
    assert plain.outputs == aligned.outputs
    assert plain.autocast is aligned.autocast is False
    assert callback.aligner.num_steps == 5  # three steps an epoch, the last of each trained plainly


@pytest.mark.parametrize("objective", ["variance", "dot"])
def test_a_step_is_that_of_an_own_loop(objective):
    options = {"weight": 0.1, "objective": objective}
    module, own = Module(dropout=0.0), Module(dropout=0.0)
    _, callback = fit(module, options, loader(6), max_epochs=1)
    (optimizer,), (scheduler,) = own.configure_optimizers()
    aligner = gradalign.GradAlign(own, **options)
    batches = Rows(24).x.split(4)
    for start in (0, K):
        with aligner.accumulate(K, reduction="sum") as step:
            for x in batches[start : start + K]:
                step.backward(lambda x=x: own.net(x).square().mean() / K)
        nn.utils.clip_grad_norm_(own.parameters(), 1.0)
        optimizer.step()
        scheduler["scheduler"].step()
        optimizer.zero_grad()
    assert same(module, own)
    assert float(callback.aligner.stats.grad_norm) == float(aligner.stats.grad_norm)
    assert callback.aligner.stats.passes == K + 1
    assert "training_step" not in vars(module)


@pytest.mark.parametrize("objective", ["variance", "dot"])
def test_metrics_are_not_fed_by_displaced_passes(objective):
    module = Module()
    trainer, _ = fit(module, {"weight": 0.1, "objective": objective}, loader(6), max_epochs=1)
    assert module.calls == module.backwards == 6
    assert module.seen == list(range(6))
    assert float(module.mean.compute()) == pytest.approx(sum(module.outputs) * K / 6)
    assert float(module.mean.weight) == 6
    assert float(trainer.callback_metrics["loss"]) == pytest.approx(sum(module.outputs) * K / 6)


def test_a_resumed_run_is_bit_identical(tmp_path):
    options = {"weight": lambda step: 0.05 * (step + 1), "objective": "variance", "every": 2}
    data = {"max_epochs": 2}
    save = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    whole = Module(dropout=0.0)
    trainer, one = fit(whole, options, loader(9), enable_checkpointing=True, callbacks=[save], **data)
    again = Module(dropout=0.0)
    resumed, other = fit(again, options, loader(9), ckpt_path=tmp_path / "step=3.ckpt", **data)
    assert same(whole, again)
    assert str(trainer.optimizers[0].state_dict()) == str(resumed.optimizers[0].state_dict())
    assert one.state_dict() == other.state_dict() == {"num_steps": 6}


def test_the_trainers_loggers_get_the_statistics_at_its_interval(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    options = {"weight": 0.1, "every": 2}
    fit(Module(), options, loader(12), max_epochs=1, logger=loggers, log_every_n_steps=2)
    (file,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(file.open()) if row.get("align/dot")]
    assert [row["step"] for row in rows] == ["1", "3"]
    (file,) = tmp_path.rglob("events.out.*")
    assert b"align/dot" in file.read_bytes()


def test_a_last_pass_without_backward_is_lightnings_own():
    def averaged(options):
        swa = lightning.pytorch.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1)
        module = Module()
        fit(module, options, callbacks=[swa], max_epochs=3)
        return module

    assert same(averaged({"weight": 0}), averaged(None))


class Manual(Module):
    automatic_optimization = False


class LineSearch(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class Skipping(Module):
    def training_step(self, batch, batch_idx):
        return None


class Drawing(Module):
    def training_step(self, dataloader_iter):
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("cls", "kwargs", "error", "message"),
    [
        (Drawing, {}, TypeError, "training_step: expected one that takes its batch; got .* dataloader_iter"),
        (Module, {"accumulate_grad_batches": 1}, ValueError, "accumulate_grad_batches: expected at least 2.*; got 1"),
        (
            Manual,
            {"gradient_clip_val": None, "accumulate_grad_batches": 1},
            TypeError,
            "automatic_optimization: expected True",
        ),
        (Skipping, {}, TypeError, "training_step: expected a loss, or a dict with one; got NoneType"),
        (
            Module,
            {"data": torch.utils.data.DataLoader(Stream(), batch_size=4)},
            RuntimeError,
            "got 2 before the data loader",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(cls, kwargs, error, message):
    module = cls()
    with pytest.raises(error, match=message):
        fit(module, OPTIONS, **kwargs)
    assert all(p.grad is None for p in module.parameters())
    assert "training_step" not in vars(module)


@pytest.mark.parametrize(
    ("name", "message"),
    [("DeepSpeedStrategy", "without DeepSpeed"), ("FSDPStrategy", "got FSDPStrategy, .* fully_shard in your own loop")],
)
def test_shards_and_engines_are_refused(name, message):
    trainer = types.SimpleNamespace(strategy=type(name, (), {})(), world_size=2, global_step=0)
    with pytest.raises(TypeError, match=message):
        GradAlignCallback(OPTIONS).on_train_start(trainer, Module())


def test_the_recipe_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = Module()
    trainer = recipe("Lightning")["train"](module, loader(16))
    assert trainer.global_step == 2
    assert trainer.callbacks[0].aligner.stats.passes == 10


class Copying(lightning.Callback):
    """Keeps copies of the module, as those that keep the best one do."""

    def __init__(self):
        self.copy = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.copy = copy.deepcopy(pl_module)
        torch.save(pl_module, io.BytesIO())


def test_a_copy_made_meanwhile_is_a_module_of_its_own():
    copies, module, own = Copying(), Module(), Module()
    fit(module, OPTIONS, callbacks=[copies], max_epochs=1)
    own.load_state_dict(copies.copy.state_dict())
    for net in (copies.copy, own):
        net.calls, net.seen, net.outputs, net.backwards = 0, [], [], 0
        net.mean.reset()
        fit(net)
    assert same(copies.copy, own)
    assert copies.copy.outputs == own.outputs
    again, expected = copy.deepcopy(copies.copy), copy.deepcopy(own)
    fit(again, OPTIONS)
    fit(expected, OPTIONS)
    assert same(again, expected)


class Popping(Module):
    """Takes its micro-batch apart."""

    def training_step(self, batch, batch_idx):
        x = batch.pop("x")
        batch["shift"] = batch["shift"] + 1
        return super().training_step(x + batch["shift"], batch_idx)


def test_a_step_that_takes_its_batch_apart():
    rows = [{"x": x, "shift": torch.zeros(1)} for x in Rows(28).x.split(4)]
    data = torch.utils.data.DataLoader(rows, batch_size=None)
    module = Popping()
    _, callback = fit(module, OPTIONS, data, max_epochs=1)
    assert callback.aligner.num_steps == 2
    assert callback.aligner.stats.passes == K + 1


def test_a_schedule_of_the_accumulation():
    schedule = lightning.pytorch.callbacks.GradientAccumulationScheduler({1: K})
    _, callback = fit(Module(), OPTIONS, callbacks=[schedule], accumulate_grad_batches=1)
    assert callback.aligner.num_steps == 9  # after seven steps of one micro-batch; the last one is trained plainly
    assert callback.aligner.stats.passes == K + 1


class Without(lightning.Callback):
    """Trains for a few batches without the other callbacks, as LearningRateFinder does."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.callbacks, trainer.callbacks = trainer.callbacks, [self]

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.callbacks = self.callbacks


def test_batches_that_are_trained_without_callbacks_are_trained_plainly():
    _, callback = fit(Module(), OPTIONS, callbacks=[Without()], max_epochs=3)
    assert callback.aligner.num_steps == 8  # after 3 + 3 + 2: the aligner counts the trainer's steps
    assert callback.aligner.stats.passes == K + 1


class Watching(Module):
    """Notes the gradients that each hook finds, with Lightning's clipping behind them."""

    def __init__(self, dropout=0.0):
        super().__init__(dropout)
        self.norms = []

    def on_before_zero_grad(self, optimizer):
        grads = [p.grad.norm() for p in self.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(grads).norm()) if grads else None)


def watched(options):
    """What the hook of the module found, how often that of a callback was called, and how often Lightning counted both."""
    module, calls = Watching(), []
    callback = type("Own", (lightning.Callback,), {"on_before_zero_grad": lambda *args: calls.append(1)})()
    trainer, _ = fit(module, options, callbacks=[callback], max_epochs=2)
    progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.zero_grad.total
    return module.norms, len(calls), (progress.ready, progress.started, progress.completed)


def test_on_before_zero_grad_sees_the_gradients_of_the_whole_step():
    plain = watched(None)
    assert plain == watched({"weight": 0.0})
    assert plain[0][0] is None
    norms, *counts = watched({"weight": 1e-9, "objective": "variance"})
    assert norms[1:] == pytest.approx(plain[0][1:], rel=1e-4)
    assert counts == list(plain[1:])


def test_methods_that_the_user_put_into_the_module_come_back():
    module, logged = Module(), []

    def own(name, *args, **kwargs):
        logged.append(name)

    module.log = own
    fit(module, OPTIONS, loader(6), max_epochs=1)
    assert vars(module)["log"] is own
    assert "backward" not in vars(module)
    assert len(logged) == 6


class Swapping(lightning.Callback):
    """Validates other weights, as an EMA does."""

    def on_validation_start(self, trainer, pl_module):
        self.own = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.load_state_dict({name: value * 1 for name, value in self.own.items()})

    def on_validation_end(self, trainer, pl_module):
        pl_module.load_state_dict(self.own)


class Validated(Module):
    def validation_step(self, batch, batch_idx):
        self.net(batch)

    def val_dataloader(self):
        return loader(1)


def test_weights_that_a_validation_swaps_within_a_step_are_named():
    options = {"callbacks": [Swapping()], "max_epochs": 1, "num_sanity_val_steps": 0}
    with pytest.raises(
        RuntimeError, match="got changed parameters; .* swaps weights .* val_check_interval a multiple of .*, 3"
    ):
        fit(Validated(), OPTIONS, loader(6), val_check_interval=2, **options)
    _, callback = fit(Validated(), OPTIONS, loader(6), val_check_interval=3, **options)
    assert callback.aligner.num_steps == 2


def short_epochs(options, data, **kwargs):
    """The warnings of epochs without a whole step, and the callback."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, callback = fit(Module(), options, data, **kwargs)
    return [str(w.message) for w in caught if "none of which has k" in str(w.message)], callback


def test_epochs_without_a_whole_step_are_warned_of_once():
    (message,), callback = short_epochs(OPTIONS, loader(2), max_epochs=3)
    assert message.startswith("accumulate_grad_batches: expected windows of k = 3 micro-batches")
    assert (
        "got epochs of 2, none of which has k, so that nothing of them is aligned; lower accumulate_grad_batches"
        in message
    )
    assert callback.aligner is None
    (_,), _ = short_epochs(lambda model: gradalign.GradAlign(model, 0.1), loader(7), limit_train_batches=2)


@pytest.mark.parametrize(
    ("options", "batches", "kwargs"),
    [
        ({"weight": 0}, 2, {}),
        (lambda model: gradalign.GradAlign(model, 0.0), 2, {}),
        (OPTIONS, 3, {}),
        (OPTIONS, 4, {}),
        (OPTIONS, 7, {"max_steps": 1, "max_epochs": -1}),
    ],
    ids=["weight 0", "weight 0 of a function", "3", "4", "max_steps"],
)
def test_epochs_with_a_whole_step_or_no_weight_are_not_warned_of(options, batches, kwargs):
    assert short_epochs(options, loader(batches), **kwargs)[0] == []


class Once(lightning.Callback):
    """Ends the training within the first step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = True


def test_a_run_that_ends_within_the_first_step_is_not_warned_of():
    assert short_epochs(OPTIONS, loader(7), callbacks=[Once()])[0] == []
