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
from torch import nn

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


def hugging_face(folder, options, dropout=0.0, rows=24, per_device=ROWS, resume=None, **arguments):
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
    sizes = {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": K}
    args = TrainingArguments(str(folder), **{**fixed, **defaults, **sizes, **arguments})
    model = gpt2(dropout).double()
    own = {} if options is None else {"aligner": options}
    trainer = (InOrder if options is None else Aligned)(model=model, args=args, train_dataset=tokens(rows), **own)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def parameters(trainer):
    return [p.detach().clone() for p in trainer.model.parameters()]


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def transformers_on_a_rank(rank, folder):
    """What is compared with one process, and what is compared here."""
    uneven = {"dropout": 0.2, "rows": 30}  # each rank has 5 micro-batches: the last step has one
    for unused in ({}, {"ddp_find_unused_parameters": False}):  # the trainer's default for its own models is True
        plain = hugging_face(folder, None, **uneven, **unused)
        zero = hugging_face(folder, {"weight": 0.0}, **uneven, **unused)
        assert same(parameters(plain), parameters(zero))
        assert losses(plain) == losses(zero)
        assert zero.aligner.num_steps == 2
        assert zero.state.global_step == 3

    found = {}
    for name, options in (("variance", VARIANCE), ("dot", {**VARIANCE, "objective": "dot"})):
        trainer = hugging_face(folder, options, ddp_find_unused_parameters=None if name == "dot" else False)
        rows = [row for row in trainer.state.log_history if "align/dot" in row]
        found[name] = parameters(trainer), [row["align/dot"] for row in rows], losses(trainer)

    saving = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "max_steps": 3}
    whole = hugging_face(Path(folder) / "whole", RESUMED, **saving)
    checkpoint = Path(folder) / "whole" / "checkpoint-1"
    again = hugging_face(Path(folder) / "again", RESUMED, resume=str(checkpoint), **saving)
    assert same(parameters(whole), parameters(again))
    assert str(whole.optimizer.state_dict()) == str(again.optimizer.state_dict())
    states = [t.aligner.state_dict() for t in (whole, again)]
    assert [s["num_steps"] for s in states] == [3, 3]
    assert same(*(s["mean"] for s in states))
    assert {path.name for path in checkpoint.iterdir() if path.suffix == ".pt"} >= {"gradalign.pt", "optimizer.pt"}
    return found | {"mean": states[0]["mean"]}


def test_transformers(two, tmp_path):
    first, second = two(transformers_on_a_rank, ("transformers.trainer",), str(tmp_path))
    assert same(first["mean"], second["mean"])
    for objective in ("variance", "dot"):
        alone = hugging_face(tmp_path, {**VARIANCE, "objective": objective}, per_device=2 * ROWS)
        params, dots, logged = first[objective]
        assert relative_error(params, parameters(alone)) < TOLERANCE
        assert same(params, second[objective][0])
        assert dots == second[objective][1] == pytest.approx(
            [row["align/dot"] for row in alone.state.log_history if "align/dot" in row], rel=1e-6
        )
        assert logged == pytest.approx(losses(alone), rel=1e-9)
