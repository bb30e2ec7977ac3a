"""Two processes under each trainer: weight=0 is the trainer's own bit for bit, and with a weight two are as one.

Micro-batch i of one process is the union of the i-th micro-batches of both.
"""

from __future__ import annotations

import os
import types
from pathlib import Path

import pytest
import torch
from support.ranks import Group
from support.recipes import recipe
from torch import nn

import gradalign
from gradalign import GradAlign
from gradalign.integrations.processes import served, wrapped

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is fetched

K, ROWS, TOLERANCE = 2, 3, 1e-10
VARIANCE = {"weight": 0.1, "objective": "variance", "radius": 0.02}


def weight_of(step):
    return 0.05 * (step + 1)


RESUMED = {"weight": weight_of, "objective": "dot", "estimator": "momentum"}


@pytest.fixture
def two():
    """Two processes that import a trainer once."""
    groups = []

    def run(function, imports, *args):
        groups.append(Group(2, imports=imports))
        return groups[0].run(function, *args, seconds=120)

    yield run
    for group in groups:
        group.stop()


def relative_error(found, expected):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def parameters(model):
    return [p.detach().clone() for p in model.parameters()]


def alone(model, options, loss_of, batches, lr=0.1):
    """The parameters, and statistics of every step, of one process whose micro-batches are those of both."""
    optimizer, aligner, stats = torch.optim.SGD(model.parameters(), lr=lr), GradAlign(model, **options), []
    for start in range(0, len(batches), K):
        micro_batches = batches[start : start + K]
        aligner.backward(lambda b, all_=micro_batches: loss_of(b, all_), micro_batches, reduction="sum")
        stats.append(aligner.stats.as_dict())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return parameters(model), stats


def agree(found, stats, expected):
    """Parameters and statistics of one of two processes are those of one."""
    params, expected_stats = expected
    assert relative_error(found, params) < TOLERANCE, relative_error(found, params)
    for name in ("loss", "grad_norm", "dot"):  # a quotient of losses that some models compute in float32
        assert [s[name] for s in stats] == pytest.approx([s[name] for s in expected_stats], rel=1e-3)


def went_on(num_steps, trained, again):
    """A resumed run is the one that was not stopped, model and state; returns what has to be the same on both processes.

    Args:
        num_steps: of both.
        trained: model, and aligner or callback, of the run that was not stopped.
        again: of the resumed one.
    """
    assert same(*(parameters(model) for model, _ in (trained, again)))
    states = [holder.state_dict() for _, holder in (trained, again)]
    assert [s["num_steps"] for s in states] == [num_steps, num_steps]
    assert same(*(s["mean"] for s in states))
    return [*parameters(trained[0]), *states[0]["mean"]]


def blocks(rows, num):
    return [rows[i : i + num] for i in range(0, len(rows), num)]


# Transformers


def gpt2(dropout):
    import transformers

    torch.manual_seed(1)
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 32, "n_positions": 8, "bos_token_id": 0}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **rates, eos_token_id=0))


def tokens(rows):
    """Rows with different numbers of labels."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 32, (rows, 6), generator=generator)
    lengths = torch.randint(2, 7, (rows,), generator=generator)
    labels = ids.masked_fill(torch.arange(6) >= lengths[:, None], -100)
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def hugging_face(folder, options, dropout=0.0, rows=24, resume=None, **arguments):
    """A trainer that has trained; plain without options."""
    from transformers import Trainer, TrainingArguments

    from gradalign.integrations.transformers import GradAlignMixin

    class InOrder(Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    class Aligned(GradAlignMixin, InOrder):
        pass

    fixed = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "lr_scheduler_type": "constant"}
    defaults = {"num_train_epochs": 1, "save_strategy": "no", "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1}
    sizes = {"per_device_train_batch_size": ROWS, "gradient_accumulation_steps": K}
    args = TrainingArguments(str(folder), **{**fixed, **defaults, **sizes, **arguments})
    model = gpt2(dropout).double()
    own = {} if options is None else {"aligner": options}
    trainer = (InOrder if options is None else Aligned)(model=model, args=args, train_dataset=tokens(rows), **own)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def transformers_on_a_rank(rank, folder):
    uneven = {"dropout": 0.2, "rows": 30}  # each rank has 5 micro-batches: the last step has one
    for unused in ({}, {"ddp_find_unused_parameters": False}):  # the trainer's default for its own models is True
        plain = hugging_face(folder, None, **uneven, **unused)
        zero = hugging_face(folder, {"weight": 0.0}, **uneven, **unused)
        assert same(parameters(plain.model), parameters(zero.model))
        assert losses(plain) == losses(zero)
        assert zero.aligner.num_steps == 2
        assert zero.state.global_step == 3

    whole = [{name: torch.stack([row[name] for row in six]) for name in six[0]} for six in blocks(tokens(24), 2 * ROWS)]
    together = {**VARIANCE, "estimator": "leave_one_out"}
    for options, unused in ((VARIANCE, False), ({**VARIANCE, "objective": "dot"}, None), (together, None)):
        trainer = hugging_face(folder, options, ddp_find_unused_parameters=unused)
        model = gpt2(0.0).double()

        def loss_of(one, several, model=model, trainer=trainer):
            items = trainer.get_batch_samples(iter(several), K, "cpu")[1] / 2  # of both processes, which have the same
            return model(**one, num_items_in_batch=items).loss

        expected = alone(model, options, loss_of, whole)
        logged = [row for row in trainer.state.log_history if "align/dot" in row]
        stats = [{name.removeprefix("align/"): value for name, value in row.items()} for row in logged]
        agree(parameters(trainer.model), stats, expected)

    saving = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "max_steps": 3}
    trained = hugging_face(Path(folder) / "whole", RESUMED, **saving)
    checkpoint = Path(folder) / "whole" / "checkpoint-1"
    again = hugging_face(Path(folder) / "again", RESUMED, resume=str(checkpoint), **saving)
    assert str(trained.optimizer.state_dict()) == str(again.optimizer.state_dict())
    return went_on(3, *((t.model, t.aligner) for t in (trained, again)))


def test_transformers(two, tmp_path):
    assert same(*two(transformers_on_a_rank, ("transformers.trainer",), str(tmp_path)))


# Accelerate


def net(dropout):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(8, 6), nn.BatchNorm1d(6) if dropout else nn.Identity(), nn.Dropout(dropout), nn.Tanh()
    )


def of_accelerate(options, folder=None, dropout=0.0, rows=24, resume=False):
    """The loop of a user, plain without options; saves after the first step, or goes on from there."""
    from accelerate import Accelerator, skip_first_batches
    from accelerate.state import AcceleratorState, GradientState

    from gradalign.integrations.accelerate import accumulate

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=K)
    model = net(dropout).double()
    data = torch.randn(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    optimizer, loader = torch.optim.SGD(model.parameters(), lr=0.1), torch.utils.data.DataLoader(data, ROWS)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    aligner = None if options is None else GradAlign(model, **options)
    if folder is not None:
        accelerator.register_for_checkpointing(aligner)
    if resume:
        accelerator.load_state(folder)
        loader = skip_first_batches(loader, K)
    stats, logged = [], []
    for number, x in enumerate(loader):
        if folder is not None and not resume and number == K:
            accelerator.save_state(folder)
        with accelerator.accumulate(model) if aligner is None else accumulate(accelerator, aligner) as step:
            if aligner is None:
                loss = model(x).square().mean()
                accelerator.backward(loss)
            else:
                loss = step.backward(lambda x=x: model(x).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                stats.append(None if aligner is None else aligner.stats.as_dict())
            optimizer.step()
            optimizer.zero_grad()
        logged.append(float(loss.detach()))
    return types.SimpleNamespace(model=model, optimizer=optimizer, aligner=aligner, stats=stats, losses=logged)


def accelerate_on_a_rank(rank, folder):
    uneven = {"dropout": 0.2, "rows": 30}
    plain, zero = of_accelerate(None, **uneven), of_accelerate({"weight": 0.0}, **uneven)
    assert same(list(plain.model.state_dict().values()), list(zero.model.state_dict().values()))
    assert plain.losses == zero.losses
    assert (zero.aligner.num_steps, len(zero.stats)) == (2, 3)

    data = torch.randn(24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for objective in ("variance", "dot"):
        options = {**VARIANCE, "objective": objective}
        found, model = of_accelerate(options), net(0.0).double()
        expected = alone(model, options, lambda x, _, m=model: m(x).square().mean() / K, data.split(2 * ROWS))
        agree(parameters(found.model), found.stats, expected)

    trained, again = of_accelerate(RESUMED, folder), of_accelerate(RESUMED, folder, resume=True)
    found = went_on(2, *((run.model, run.aligner) for run in (trained, again)))

    os.environ["ACCELERATE_USE_CPU"] = "true"
    for title in ("Accelerate", "Accelerate with large batches"):
        model, loader = net(0.0), torch.utils.data.DataLoader(torch.randn(64, 8), 4 if title == "Accelerate" else 32)
        _, aligner = recipe(title)["train"](model, lambda m, x: m(x).square().mean(), loader)
        assert aligner.num_steps == 1
        assert aligner.stats.passes == 10
    return found


def test_accelerate(two, tmp_path):
    assert same(*two(accelerate_on_a_rank, ("accelerate",), str(tmp_path / "state")))


# Lightning


def by_hand(objective):
    """The recipe that leaves the accumulation to gradalign, on both processes and on one."""
    import lightning

    data = torch.randn(48, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    module = recipe("Lightning with large batches")["Aligned"](net(0.0).double(), k=K)
    module.aligner = GradAlign(module.net, **{**VARIANCE, "objective": objective})
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    sizes = {"devices": 2, "max_epochs": 1, "use_distributed_sampler": False}
    trainer = lightning.Trainer(accelerator="cpu", strategy="ddp", precision="64-true", **quiet, **sizes)
    sampler = torch.utils.data.DistributedSampler(data, shuffle=False)
    trainer.fit(module, torch.utils.data.DataLoader(data, 4 * ROWS, sampler=sampler))

    model = net(0.0).double()
    optimizer = gradalign.optim.AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
    aligner = GradAlign(model, **{**VARIANCE, "objective": objective})
    for batch in data.split(8 * ROWS):
        aligner.backward(lambda x: model(x).square().mean(), gradalign.chunk(batch, K))
        optimizer.step()
        optimizer.zero_grad()
    assert relative_error(parameters(module.net), parameters(model)) < TOLERANCE


def of_lightning(options, dropout=0.0, rows=24, resume=None, folder=None, **arguments):
    """A trainer that has trained, plain without options."""
    import lightning

    from gradalign.integrations.lightning import GradAlignCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.losses, self.stats = net(dropout).double(), [], []  # before a checkpoint is loaded into it

        def training_step(self, batch, batch_idx):
            loss = self.net(batch).square().mean()
            self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.losses.append(float(outputs["loss"]))
            if batch_idx % K == K - 1 and options is not None:
                self.stats.append(callbacks[-1].aligner.stats.as_dict())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callbacks = [] if options is None else [GradAlignCallback(options)]
    if folder is not None:
        every = {"every_n_epochs": 1, "save_top_k": -1}
        callbacks.insert(0, lightning.pytorch.callbacks.ModelCheckpoint(folder, "{epoch}", **every))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    sizes = {
        "devices": 2,
        "max_epochs": 1,
        "accumulate_grad_batches": K,
        "gradient_clip_val": 1.0,
        "use_distributed_sampler": False,
    }
    given = {"accelerator": "cpu", "strategy": "ddp", "precision": "64-true", **quiet, **sizes, **arguments}
    trainer = lightning.Trainer(callbacks=callbacks, enable_checkpointing=folder is not None, **given)
    module = Module()
    torch.manual_seed(3)
    data = torch.randn(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    sampler = torch.utils.data.DistributedSampler(data, shuffle=False)  # Lightning's own shuffles
    trainer.fit(module, torch.utils.data.DataLoader(data, ROWS, sampler=sampler), ckpt_path=resume)
    return types.SimpleNamespace(module=module, trainer=trainer, callback=callbacks[-1] if callbacks else None)


def lightning_on_a_rank(rank, folder):
    uneven = {"dropout": 0.2, "rows": 30, "max_epochs": 2}
    for strategy in ("ddp", "ddp_find_unused_parameters_true"):
        plain = of_lightning(None, **uneven, strategy=strategy)
        zero = of_lightning({"weight": 0.0}, **uneven, strategy=strategy)
        assert same(list(plain.module.state_dict().values()), list(zero.module.state_dict().values()))
        assert plain.module.losses == zero.module.losses
        assert plain.trainer.callback_metrics["loss"] == zero.trainer.callback_metrics["loss"]
        assert (zero.callback.aligner.num_steps, zero.trainer.global_step) == (5, 6)

    data = torch.randn(24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for objective in ("variance", "dot"):
        options = {**VARIANCE, "objective": objective}
        found, model = of_lightning(options), net(0.0).double()
        expected = alone(model, options, lambda x, _, m=model: m(x).square().mean() / K, data.split(2 * ROWS))
        agree(parameters(found.module), found.module.stats, expected)

        by_hand(objective)

    trained = of_lightning(RESUMED, folder=folder, max_epochs=2)
    again = of_lightning(RESUMED, folder=folder, max_epochs=2, resume=Path(folder) / "epoch=0.ckpt")
    return went_on(4, *((run.module, run.callback) for run in (trained, again)))


def test_lightning(two, tmp_path):
    assert same(*two(lightning_on_a_rank, ("lightning",), str(tmp_path)))


# What is refused


class Accelerator(types.SimpleNamespace):
    def __init__(self, kind, **parallelism):
        config = types.SimpleNamespace(**parallelism) if parallelism else None
        super().__init__(distributed_type=types.SimpleNamespace(value=kind), parallelism_config=config)


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        (
            Accelerator("DEEPSPEED"),
            "expected training without DeepSpeed; got DeepSpeed, .* fully_shard in your own loop",
        ),
        (Accelerator("FSDP"), "with DistributedDataParallel; got FSDP, .* fully_shard in your own loop"),
        (Accelerator("MULTI_GPU", cp_enabled=True), "parallelism_config: expected none"),
    ],
)
def test_shards_and_engines_are_refused(accelerator, message):
    with pytest.raises(TypeError, match=message):
        served(accelerator)


@pytest.mark.parametrize("kind", ["NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU"])
def test_a_process_for_each_device_is_served(kind):
    served(Accelerator(kind, dp_replicate_enabled=True))


def test_an_aligner_of_a_module_that_is_not_wrapped_is_refused():
    with pytest.raises(TypeError, match="expected that of a module in DistributedDataParallel, .*; make it later"):
        wrapped([nn.Linear(2, 2)], "make it later")
