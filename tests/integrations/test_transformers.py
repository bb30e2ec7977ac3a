"""Under every Trainer, weight=0 is the parent bit for bit, and with a weight each step is that of an own loop."""

from __future__ import annotations

import os
import types
import warnings

import pytest
import torch
from support.recipes import recipe
from torch import nn

import gradalign

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is fetched

import transformers
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

from gradalign.estimators import Split
from gradalign.integrations.transformers import GradAlignMixin

K, VOCAB, LENGTH = 4, 32, 6
OPTIONS = {"weight": 0.1, "objective": "variance"}


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """TrainingArguments(bf16=True) of 4.57 leave this set for those that come after them."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


class Aligned(GradAlignMixin, Trainer):
    pass


class InOrderPlain(Trainer):
    """Rows in the order of the data set, whatever the version calls that."""

    def _get_train_sampler(self, *args):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class InOrder(GradAlignMixin, InOrderPlain):
    pass


class AlignedSeq2Seq(GradAlignMixin, Seq2SeqTrainer):
    pass


def gpt2(**kwargs):
    torch.manual_seed(1)
    config = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": VOCAB, "n_positions": 16, **kwargs}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=0, eos_token_id=0, **config))


def gpt2_anew():
    return gpt2(**STILL)


def llama():
    torch.manual_seed(1)
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCAB, **sizes, attention_dropout=0.1))


def bert():
    torch.manual_seed(1)
    sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=VOCAB, **sizes))


def t5():
    torch.manual_seed(1)
    sizes = {"num_layers": 2, "d_model": 16, "d_ff": 16, "num_heads": 2, "d_kv": 8, "vocab_size": VOCAB}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def tokens(rows=26, model="lm", seed=2):
    """Rows of a data set: with padding, so that micro-batches have different numbers of labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB, (rows, LENGTH), generator=generator)
    lengths = torch.randint(2, LENGTH + 1, (rows,), generator=generator)
    padding = torch.arange(LENGTH) >= lengths[:, None]
    labels = ids[:, 0] % 2 if model == "classes" else ids.masked_fill(padding, -100)
    return [
        {"input_ids": i, "attention_mask": (~m).long(), "labels": y}
        for i, m, y in zip(ids, padding, labels, strict=True)
    ]


def arguments(folder, cls=TrainingArguments, **kwargs):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": K,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return cls(**{**defaults, **kwargs})


def trained(cls, model, folder, rows=None, arguments_class=TrainingArguments, trainer_options=None, **kwargs):
    own = {"aligner": OPTIONS} if issubclass(cls, GradAlignMixin) else {}
    args = arguments(folder, arguments_class, **kwargs)
    own.update(trainer_options or {})
    if "model_init" not in own:
        own["model"] = model
    trainer = cls(args=args, train_dataset=tokens() if rows is None else rows, **own)
    trainer.train()
    return trainer


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


CASES = {
    "gpt2, dropout, tokens counted": (gpt2, {}, {}),
    "llama, bf16, checkpointing": (llama, {"bf16": True, "gradient_checkpointing": True}, {}),
    "bert": (bert, {}, {"model": "classes", "rows": 28}),
    "label smoothing": (gpt2, {"label_smoothing_factor": 0.1}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_weight_0_is_the_parent_bit_for_bit(case, tmp_path):
    make, options, data = CASES[case]
    rows = tokens(**data)  # 13 or 14 micro-batches: the last step has one or two
    plain = trained(Trainer, make(), tmp_path, rows, **options)
    aligned = trained(Aligned, make(), tmp_path, rows, trainer_options={"aligner": {"weight": 0.0}}, **options)
    assert same(plain.model, aligned.model)
    assert aligned.aligner.num_steps == 3
    assert aligned.state.global_step == 4
    histories = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (plain, aligned)]
    assert histories[0] == histories[1]


def test_weight_0_is_the_parent_with_a_loss_scale(tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler

    def scaled(trainer):  # Accelerate makes one on a GPU only
        trainer.accelerator.scaler = scaler("cpu", init_scale=64.0, growth_interval=2)
        return trainer

    class Plain(Trainer):
        def create_optimizer(self, *args, **kwargs):
            return scaled(self) and super().create_optimizer(*args, **kwargs)

    class Mixed(GradAlignMixin, Plain):
        pass

    plain = trained(Plain, gpt2(), tmp_path)
    aligned = trained(Mixed, gpt2(), tmp_path, trainer_options={"aligner": {"weight": 0.0}})
    assert aligned.accelerator.scaler.get_scale() == plain.accelerator.scaler.get_scale() != 64.0
    assert same(plain.model, aligned.model)
    assert float(aligned.aligner.stats.grad_norm) < 20  # without the scale


def own_loop(model, rows, options, trainer, num_steps=3):
    """What the Trainer has to compute: losses over the number of labels in the whole step, which it counts."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    aligner = gradalign.GradAlign(model, **options)
    micro_batches = [
        {name: torch.stack([row[name] for row in pair]) for name in pair[0]}
        for pair in zip(rows[::2], rows[1::2], strict=True)
    ]
    for start in range(0, num_steps * K, K):
        batches, items = trainer.get_batch_samples(iter(micro_batches[start : start + K]), K, "cpu")
        with aligner.accumulate(K, reduction="sum") as step:
            for b in batches:
                step.backward(lambda b=b, items=items: model(**b, num_items_in_batch=items).loss)
        optimizer.step()
        optimizer.zero_grad()
    return aligner


@pytest.mark.parametrize("objective", ["variance", "dot"])
def test_a_step_is_that_of_an_own_loop(objective, tmp_path):
    options = {"weight": lambda step: 0.1 * (step + 1), "objective": objective, "every": 2}
    model, rows = gpt2(**STILL), tokens(24)
    same_steps = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    aligned = trained(InOrder, gpt2(**STILL), tmp_path, rows, trainer_options={"aligner": options}, **same_steps)
    aligner = own_loop(model, rows, options, aligned)
    assert same(model, aligned.model)
    assert float(aligned.aligner.stats.grad_norm) == float(aligner.stats.grad_norm)


STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SITES = [0, 1, 1, 0, 1, 0]  # in turn, of the micro-batches of two rows


def rows_of_sites(rows):
    return [{**row, "site": torch.tensor(SITES[i // 2 % len(SITES)])} for i, row in enumerate(tokens(rows))]


def site_of(inputs):
    (site,) = set(inputs.pop("site").tolist())
    return f"site {site}"


@pytest.mark.parametrize(
    ("options", "by_source"),
    [
        ({"estimator": "leave_one_out"}, False),
        ({"estimator": Split(probes="rotate")}, False),
        ({"estimator": "leave_one_out", "objective": "cosine"}, True),
        ({"estimator": "split", "objective": "dot", "every": 2}, True),
    ],
    ids=["leave_one_out", "rotated", "leave_one_out by source", "split by source"],
)
def test_micro_batches_that_are_needed_together(options, by_source, tmp_path):
    options = {**OPTIONS, **options}
    rows, model = tokens(26), gpt2(**STILL)
    same_steps = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    given, data = {"aligner": options}, rows
    if by_source:
        given, data = {**given, "source_of": site_of}, rows_of_sites(26)
        same_steps["remove_unused_columns"] = False
    aligned = trained(InOrder, gpt2(**STILL), tmp_path, data, trainer_options=given, max_steps=3, **same_steps)

    optimizer, aligner = torch.optim.SGD(model.parameters(), lr=1e-2), gradalign.GradAlign(model, **options)
    pairs = zip(rows[::2], rows[1::2], strict=True)
    batches = [{name: torch.stack([row[name] for row in pair]) for name in pair[0]} for pair in pairs]
    sites = [f"site {SITES[i % len(SITES)]}" for i in range(len(batches))]
    for start in (0, K, 2 * K):
        window = batches[start : start + K]
        items = aligned.get_batch_samples(iter([dict(b, site=torch.zeros(1)) for b in window]), K, "cpu")[1]
        sources = sites[start : start + K] if by_source else None
        aligner.backward(
            lambda b, items=items: model(**b, num_items_in_batch=items).loss, window, reduction="sum", sources=sources
        )
        optimizer.step()
        optimizer.zero_grad()
    assert same(model, aligned.model)
    assert aligned.aligner.stats.passes == aligner.stats.passes
    assert float(aligned.aligner.stats.grad_norm) == float(aligner.stats.grad_norm)


def test_weight_0_with_sources_is_the_parent_bit_for_bit(tmp_path):
    plain = trained(InOrderPlain, gpt2(), tmp_path)
    given = {"aligner": {"weight": 0.0, "estimator": "leave_one_out"}, "source_of": site_of}
    aligned = trained(InOrder, gpt2(), tmp_path, rows_of_sites(26), trainer_options=given, remove_unused_columns=False)
    assert same(plain.model, aligned.model)
    histories = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (plain, aligned)]
    assert histories[0] == histories[1]


def test_source_of_of_the_docs_tells_sites_apart_and_names_what_removes_them(tmp_path):
    source_of = recipe("Sources in a Trainer")["source_of"]
    assert source_of({"site": torch.tensor([1, 1])}) == 1
    with pytest.raises(AssertionError, match="a micro-batch of several sites"):
        source_of({"site": torch.tensor([1, 2])})
    given = {"aligner": OPTIONS, "source_of": source_of}
    with pytest.raises(ValueError, match="source_of: .*with 'site'; got only .*remove_unused_columns=False") as caught:
        trained(InOrder, gpt2(), tmp_path, rows_of_sites(26), trainer_options=given)
    assert isinstance(caught.value.__cause__, KeyError)


def test_sequence_to_sequence(tmp_path):
    plain = trained(Seq2SeqTrainer, t5(), tmp_path, arguments_class=Seq2SeqTrainingArguments)
    zero = trained(
        AlignedSeq2Seq,
        t5(),
        tmp_path,
        arguments_class=Seq2SeqTrainingArguments,
        trainer_options={"aligner": {"weight": 0.0}},
    )
    assert same(plain.model, zero.model)
    aligned = trained(AlignedSeq2Seq, t5(), tmp_path, arguments_class=Seq2SeqTrainingArguments)
    assert not same(plain.model, aligned.model)


def weight_of(step):
    return 0.02 * (step + 1)


RESUMED = {"weight": weight_of, "objective": "variance", "every": 2}


@pytest.mark.parametrize(
    "options", [RESUMED, {**OPTIONS, "objective": "dot", "estimator": "momentum"}], ids=["every", "momentum"]
)
def test_a_resumed_run_is_bit_identical(options, tmp_path):
    save = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "num_train_epochs": 2}
    whole = trained(Aligned, gpt2(), tmp_path / "whole", trainer_options={"aligner": options}, **save)
    again = Aligned(
        model=gpt2(),
        args=arguments(tmp_path / "again", **save),
        train_dataset=tokens(),
        aligner=options,
    )
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same(whole.model, again.model)
    for key in ("state", "param_groups"):
        assert str(whole.optimizer.state_dict()[key]) == str(again.optimizer.state_dict()[key])
    one, other = whole.aligner.state_dict(), again.aligner.state_dict()
    assert one["num_steps"] == other["num_steps"] == 6
    assert all(torch.equal(a, b) for a, b in zip(one.get("mean", []), other.get("mean", []), strict=True))


def test_model_init_and_a_search_bind_the_model_of_the_trial(tmp_path):
    options = {"model_init": lambda trial: gpt2(), "aligner": OPTIONS}
    trainer = trained(Aligned, None, tmp_path, trainer_options=options)
    first, model = trainer.aligner, trainer.model
    once = [p.clone() for p in model.parameters()]
    trainer.train()
    assert trainer.aligner is not first
    assert trainer.model is not model
    assert all(torch.equal(a, b) for a, b in zip(once, trainer.model.parameters(), strict=True))


def test_the_logs_have_the_statistics_at_the_trainers_interval(tmp_path, monkeypatch):
    read = []
    original = gradalign.AlignmentStats.as_dict
    monkeypatch.setattr(gradalign.AlignmentStats, "as_dict", lambda stats: read.append(1) or original(stats))
    trainer = trained(
        Aligned,
        gpt2(),
        tmp_path,
        trainer_options={"aligner": {**OPTIONS, "every": 2, "radius": 0.02}, "eval_dataset": tokens(4)},
        logging_steps=2,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        report_to=["tensorboard"],
    )
    rows = [row for row in trainer.state.log_history if "align/dot" in row]
    assert [row["step"] for row in rows] == [2, 4]  # steps 1 and 3 had no term: those before them are shown
    assert all("loss" in row and row["align/radius"] == 0.02 for row in rows)
    assert len(read) == 2
    gradalign.telemetry.plot(trainer.state.log_history, tmp_path / "run.png")
    (file,) = tmp_path.rglob("events.out.*")
    assert b"align/dot" in file.read_bytes()


class Noting(Trainer):
    """A trainer that keeps metrics of its own, in the ways that trainers do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls, self.seen, self.per_mode = 0, [], {"train": {"tokens": [0]}}
        self.total = torch.zeros(())

    def compute_loss(self, model, inputs, **kwargs):
        self.calls += 1
        self.seen.append(inputs["input_ids"].tolist())
        self.per_mode["train"]["tokens"][0] += inputs["input_ids"].numel()
        self.total += 1
        return super().compute_loss(model, inputs, **kwargs)


class AlignedNoting(GradAlignMixin, Noting):
    pass


@pytest.mark.parametrize(
    "options", [OPTIONS, {**OPTIONS, "objective": "dot"}, {**OPTIONS, "estimator": "leave_one_out"}]
)
def test_metrics_are_not_fed_by_displaced_passes(options, tmp_path):
    plain = trained(Noting, gpt2(), tmp_path)
    aligned = trained(AlignedNoting, gpt2(), tmp_path, trainer_options={"aligner": options})
    assert aligned.aligner.stats.passes == (2 * K if "estimator" in options else K + 1)
    assert aligned.calls == plain.calls == 13
    assert aligned.seen == plain.seen
    assert aligned.per_mode == plain.per_mode
    assert float(aligned.total) == 13


class Logging(Trainer):
    """Logs what each forward gave, as subclasses do."""

    def compute_loss(self, model, inputs, **kwargs):
        loss = super().compute_loss(model, inputs, **kwargs)
        if model.training:
            self.log({"ce": float(loss.detach())})
        return loss


class AlignedLogging(GradAlignMixin, Logging):
    pass


class Rows(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen += [logs["ce"]] if "ce" in logs else []


@pytest.mark.parametrize(
    "options", [OPTIONS, {**OPTIONS, "objective": "dot"}, {**OPTIONS, "estimator": "leave_one_out"}]
)
def test_what_a_loss_logs_is_logged_once(options, tmp_path):
    plain = trained(Logging, gpt2(), tmp_path, max_steps=1)
    rows = Rows()
    given = {"aligner": options, "callbacks": [rows]}
    aligned = trained(AlignedLogging, gpt2(), tmp_path, trainer_options=given, max_steps=1)
    expected = [row["ce"] for row in plain.state.log_history if "ce" in row]
    assert rows.seen == [row["ce"] for row in aligned.state.log_history if "ce" in row]
    assert len(expected) == K
    assert rows.seen == expected


class Stop(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step == 1


def test_a_search_makes_the_aligner_of_each_trial(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    made = []

    class Noted(gradalign.GradAlign):
        def __init__(self, model, weight, **kwargs):
            made.append((model, weight))
            super().__init__(model, weight, **kwargs)

    monkeypatch.setattr(gradalign, "GradAlign", Noted)
    search = recipe("Hyper-parameter search")["search"]
    best = search(gpt2_anew, tokens(32), tokens(8, seed=3), str(tmp_path), n_trials=2)
    assert len({id(model) for model, _ in made}) == len({weight for _, weight in made}) == 2
    weight = best.hyperparameters["align_weight"]
    assert weight in [weight for _, weight in made]
    given = {"aligner": {**OPTIONS, "weight": weight}, "eval_dataset": tokens(8, seed=3), "model_init": gpt2_anew}
    sizes = {"gradient_accumulation_steps": 8, "learning_rate": 5e-5}
    alone = trained(Aligned, None, tmp_path, tokens(32), trainer_options=given, **sizes)
    assert alone.evaluate()["eval_loss"] == best.objective


@pytest.mark.parametrize("estimator", ["split", "leave_one_out"])
def test_a_step_that_a_callback_ends_early_leaves_nothing(estimator, tmp_path):
    given = {"aligner": {**OPTIONS, "estimator": estimator}, "callbacks": [Stop()]}
    trainer = trained(Aligned, gpt2(), tmp_path, trainer_options=given, num_train_epochs=2)
    assert trainer.aligner.num_steps >= 1
    assert all(p.grad is None for p in trainer.model.parameters())
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())


class Converting(Trainer):
    """Prepares a batch by itself, as one that converts or encodes it does."""

    def _prepare_inputs(self, inputs):
        return dict(super()._prepare_inputs(inputs))


class AlignedConverting(GradAlignMixin, Converting):
    pass


class Picking(Trainer):
    """Prepares what it has kept, whatever the batch."""

    def _prepare_inputs(self, inputs):
        self.kept = getattr(self, "kept", None) or super()._prepare_inputs(inputs)
        return self.kept


class AlignedPicking(GradAlignMixin, Picking):
    pass


def test_inputs_may_be_prepared_in_a_way_of_ones_own_but_not_be_the_same(tmp_path):
    given = {"aligner": {**OPTIONS, "estimator": "leave_one_out"}}
    converting = trained(AlignedConverting, gpt2(), tmp_path, trainer_options=given)
    assert same(converting.model, trained(Aligned, gpt2(), tmp_path, trainer_options=given).model)
    with pytest.raises(TypeError, match="AlignedPicking has a _prepare_inputs of its own, which generates or picks"):
        trained(AlignedPicking, gpt2(), tmp_path, trainer_options=given)


class OwnStep(Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


class AlignedOwnStep(GradAlignMixin, OwnStep):
    pass


class StepInFront(GradAlignMixin, Trainer):
    training_step = OwnStep.training_step


class LossInFront(GradAlignMixin, Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss


def test_the_mixin_behind_a_trainer_is_refused():
    with pytest.raises(
        TypeError, match=r"expected GradAlignMixin before the Trainer; .*class Wrong\(GradAlignMixin, Trainer\)"
    ):

        class Wrong(Trainer, GradAlignMixin):
            pass

    class Noting:
        def log(self, *args, **kwargs):
            super().log(*args, **kwargs)

    assert issubclass(type("Right", (Noting, Aligned), {}), GradAlignMixin)


@pytest.mark.parametrize(
    ("cls", "options", "arguments", "error", "message"),
    [
        (StepInFront, OPTIONS, {}, TypeError, "expected that of StepInFront to call super"),
        (LossInFront, OPTIONS, {}, TypeError, "compute_loss: expected the one of LossInFront behind GradAlignMixin"),
        (
            Aligned,
            OPTIONS,
            {"gradient_accumulation_steps": 1},
            ValueError,
            "gradient_accumulation_steps: expected at least 2",
        ),
        (Aligned, {"objective": "dot"}, {}, TypeError, "aligner: expected options of GradAlign; .* 'weight'"),
        (Aligned, {"weight": 1, "wieght": 1}, {}, TypeError, "aligner: expected options of GradAlign; .* 'wieght'"),
        (Aligned, 0.03, {}, TypeError, "aligner: expected options of GradAlign, such as .*; got float"),
        (AlignedOwnStep, OPTIONS, {}, TypeError, "AlignedOwnStep has a training_step of its own"),
        (
            Aligned,
            {"weight": 0.1, "estimator": "exact"},
            {},
            ValueError,
            "which differentiates twice by itself",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(cls, options, arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        trained(cls, gpt2(), tmp_path, trainer_options={"aligner": options}, **arguments)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("DEEPSPEED", "without DeepSpeed"),
        ("FSDP", "got FSDP, .* fully_shard in your own loop"),
        ("MULTI_GPU", "expected that of a module in DistributedDataParallel"),
    ],
)
def test_shards_engines_and_unwrapped_models_are_refused(kind, message, tmp_path, monkeypatch):
    trainer = Aligned(model=gpt2(), args=arguments(tmp_path), train_dataset=tokens(), aligner=OPTIONS)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", types.SimpleNamespace(value=kind))
    with pytest.raises(TypeError, match=message):
        trainer.training_step(trainer.model, {})


def test_several_devices_and_offloading_are_refused(tmp_path):
    args = arguments(tmp_path)
    trainer = Aligned(model=gpt2(), args=args, train_dataset=tokens(), aligner=OPTIONS)
    args.activation_offloading = True
    with pytest.raises(TypeError, match="activation_offloading: expected False"):
        trainer.training_step(trainer.model, {})
    args._n_gpu = 2
    with pytest.raises(
        TypeError, match="n_gpu: expected one device in a process; got 2, .* torchrun --nproc-per-node 2"
    ):
        trainer.training_step(trainer.model, {})


class MeanOverLabels(nn.Module):
    """A model whose loss is the mean over the labels of a micro-batch."""

    def __init__(self):
        super().__init__()
        self.inner = gpt2()

    def forward(self, input_ids, attention_mask, labels):
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_a_micro_batch_without_labels_is_named(tmp_path):
    rows = tokens(16)
    rows[2]["labels"] = rows[3]["labels"] = torch.full((LENGTH,), -100)
    with pytest.raises(ValueError, match="whose labels are all -100"):
        trained(InOrder, MeanOverLabels(), tmp_path, rows)


def test_the_recipe_of_the_docs(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    trainer = recipe("Hugging Face Trainer")["train"](gpt2(), tokens(48), str(tmp_path))
    assert trainer.aligner.num_steps == 9
    assert trainer.aligner.stats.passes == 10
    assert sum("align/dot" in row for row in trainer.state.log_history) == 9


def test_the_recipe_of_the_docs_for_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    rows = [{**row, "site": int(i >= 17)} for i, row in enumerate(tokens(30, model="classes"))]
    names, orders = recipe("Sources in a Trainer"), []
    monkeypatch.setattr(
        names["OneSourceABatch"], "__iter__", noting(names["OneSourceABatch"].__iter__, orders), raising=True
    )
    trainer = names["train"](bert(), rows, str(tmp_path))
    assert trainer.aligner.num_steps == trainer.state.global_step == 9  # three epochs of 12 of the smaller site
    assert trainer.aligner.stats.passes == 4
    assert len(orders) == 3
    for order in orders:
        assert [i >= 17 for i in order] == ([False] * 4 + [True] * 4) * 3
        assert len(set(order)) == 24
    assert orders[0] != orders[1]


def noting(iterate, into):
    """The same iteration, whose values are kept."""

    def noted(self):
        into.append([])
        for value in iterate(self):
            into[-1].append(value)
            yield value

    return noted


class Endless(torch.utils.data.IterableDataset):
    """Its length is not known, and does not divide by the micro-batches of a step."""

    def __iter__(self):
        yield from tokens(14)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_stream_whose_epoch_ends_within_a_step(weight, tmp_path):
    options = {"rows": Endless(), "max_steps": 7}
    plain = trained(Trainer, gpt2_anew(), tmp_path / "plain", **options)
    trainer_options = {"aligner": {"weight": weight}}
    aligned = trained(Aligned, gpt2_anew(), tmp_path / "own", trainer_options=trainer_options, **options)
    assert aligned.state.global_step == plain.state.global_step == 7
    assert same(plain.model, aligned.model) is (weight == 0)


def short_epochs(*args, **kwargs):
    """The warnings of a run without a step of K micro-batches, and its trainer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trained(*args, **kwargs)
    return [str(w.message) for w in caught if "none of which has k" in str(w.message)], trainer


@pytest.mark.parametrize(
    ("rows", "options", "given"),
    [
        (tokens(6), OPTIONS, {"num_train_epochs": 3}),
        (tokens(6), lambda model: gradalign.GradAlign(model, 0.1), {"num_train_epochs": 3}),
    ],
    ids=["options", "function"],
)
def test_a_run_whose_epochs_have_no_whole_step_is_warned_of_once(rows, options, given, tmp_path):
    (message,), _ = short_epochs(Aligned, gpt2(), tmp_path, rows, trainer_options={"aligner": options}, **given)
    assert message.startswith("gradient_accumulation_steps: expected windows of k = 4 micro-batches")
    assert (
        "got epochs of 3, none of which has k, so that nothing of them is aligned; lower gradient_accumulation_steps"
        in message
    )


@pytest.mark.parametrize(
    ("rows", "options", "given"),
    [
        (6, {"weight": 0.0}, {}),
        (6, lambda model: gradalign.GradAlign(model, 0.0), {}),
        (8, OPTIONS, {}),
        (10, OPTIONS, {}),
        (26, OPTIONS, {"max_steps": 1}),
    ],
    ids=["weight 0", "weight 0 of a function", "8", "10", "max_steps"],
)
def test_a_run_with_a_whole_step_or_no_weight_is_not_warned_of(rows, options, given, tmp_path):
    trainer_options = {"aligner": options}
    assert short_epochs(Aligned, gpt2(), tmp_path, tokens(rows), trainer_options=trainer_options, **given)[0] == []


def test_what_is_left_of_a_resumed_epoch_is_no_short_one(tmp_path):
    save = {"save_strategy": "steps", "save_steps": 3}
    trained(Trainer, gpt2(), tmp_path, **save)
    again = Aligned(model=gpt2(), args=arguments(tmp_path, **save), train_dataset=tokens(), aligner=OPTIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))  # the last micro-batch of 13
    assert again.state.global_step == 4
    assert not any("none of which has k" in str(w.message) for w in caught)


class Strict(nn.Module):
    """A model that takes no other arguments."""

    def __init__(self):
        super().__init__()
        self.inner = gpt2(**STILL)

    def forward(self, input_ids, attention_mask, labels):
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        return {"loss": output.loss, "logits": output.logits}


@pytest.mark.parametrize(
    "evaluated",
    [rows_of_sites(8), [{**row, "site": torch.tensor(i % 2)} for i, row in enumerate(tokens(8))], tokens(8)],
    ids=["sites", "mixed sites", "no sites"],
)
def test_an_evaluation_takes_the_source_out_too(evaluated, tmp_path):
    given = {
        "aligner": {**OPTIONS, "estimator": "leave_one_out"},
        "source_of": recipe_source_of(),
        "eval_dataset": evaluated,
    }
    trainer = trained(
        InOrder, Strict(), tmp_path, rows_of_sites(24), trainer_options=given, remove_unused_columns=False
    )
    names = list(evaluated[0])
    found = trainer.evaluate()["eval_loss"]
    assert found == pytest.approx(trainer.evaluate(tokens(8))["eval_loss"])
    inputs = {name: torch.stack([row[name] for row in evaluated]) for name in names}
    trainer.prediction_step(trainer.model, inputs, True)
    assert list(inputs) == names  # of the caller


def recipe_source_of():
    return recipe("Sources in a Trainer")["source_of"]


def test_a_source_that_the_evaluation_is_to_hand_on_stays(tmp_path):
    """As one of `label_names`: the metrics get it, and without it the Trainer would compute none."""
    seen = []
    given = {
        "aligner": {**OPTIONS, "estimator": "leave_one_out"},
        "source_of": recipe_source_of(),
        "eval_dataset": rows_of_sites(8),
        "compute_metrics": lambda prediction: seen.append(prediction.label_ids[1].tolist()) or {"seen": 1.0},
    }
    options = {"remove_unused_columns": False, "label_names": ["labels", "site"]}
    trainer = trained(InOrder, gpt2(), tmp_path, rows_of_sites(24), trainer_options=given, **options)
    found = trainer.evaluate()
    assert found["eval_seen"] == 1.0
    assert "eval_loss" in found
    assert seen == [[int(row["site"]) for row in rows_of_sites(8)]]
