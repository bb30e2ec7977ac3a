"""TRL's trainers and LoRA: weight=0 is the parent bit for bit, and no metric is fed by a displaced pass."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is fetched

import datasets
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from gradalign.integrations.transformers import GradAlignMixin

K, WORDS = 4, [f"w{i}" for i in range(28)]


class AlignedSFT(GradAlignMixin, SFTTrainer):
    pass


class AlignedDPO(GradAlignMixin, DPOTrainer):
    pass


class AlignedGRPO(GradAlignMixin, GRPOTrainer):
    pass


class AlignedRLOO(GradAlignMixin, RLOOTrainer):
    pass


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def gpt2():
    torch.manual_seed(1)
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))


def texts(*names):
    generator = torch.Generator().manual_seed(2)

    def text():
        words = torch.randint(len(WORDS), (int(torch.randint(2, 7, (), generator=generator)),), generator=generator)
        return " " + " ".join(WORDS[i] for i in words)

    return datasets.Dataset.from_list([{name: text() for name in names} for _ in range(24)])


LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], init_lora_weights=False)
CASES = {
    "sft, packing": (
        SFTTrainer,
        AlignedSFT,
        SFTConfig,
        ("text",),
        {"packing": True, "packing_strategy": "wrapped"},
        None,
    ),
    "sft, completion only, lora": (SFTTrainer, AlignedSFT, SFTConfig, ("prompt", "completion"), {}, LORA),
    "dpo, lora": (DPOTrainer, AlignedDPO, DPOConfig, ("prompt", "chosen", "rejected"), {}, LORA),
}


QUIET = {
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
}


@pytest.mark.parametrize("case", CASES)
def test_trl(case, tmp_path):
    parent, aligned, config, names, options, lora = CASES[case]

    def trained(cls, **own):
        args = config(
            output_dir=str(tmp_path),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=K,
            max_steps=2,
            learning_rate=1e-2,
            max_length=8,
            **QUIET,
            **options,
        )
        torch.manual_seed(3)  # the adapters
        data = {"train_dataset": texts(*names), "processing_class": tokenizer(), "peft_config": lora}
        trainer = cls(model=gpt2(), args=args, **data, **own)
        trainer.train()
        return trainer

    plain = trained(parent)
    zero = trained(aligned, aligner={"weight": 0.0})
    some = trained(aligned, aligner={"weight": 0.1, "objective": "variance"})
    flat = [torch.cat([p.detach().flatten() for p in t.model.parameters()]) for t in (plain, zero, some)]
    assert torch.equal(flat[0], flat[1])
    assert 0 < float((flat[0] - flat[2]).abs().max()) < 0.1
    assert some.aligner.stats.passes == K + 1
    logged = [[row for row in t.state.log_history if "num_tokens" in row] for t in (plain, some)]
    assert [row["num_tokens"] for row in logged[0]] == [row["num_tokens"] for row in logged[1]]
    assert logged[0][0]["mean_token_accuracy"] == logged[1][0]["mean_token_accuracy"]
    assert "align/dot" in logged[1][0]


def generated(cls, config, folder, steps_per_generation=2 * K, **own):
    """Trains on what the model generates, for two steps; with a step for each generation without old log-probabilities."""
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=K,
        steps_per_generation=steps_per_generation,
        max_steps=2,
        learning_rate=1e-2,
        num_generations=2,
        max_completion_length=4,
        beta=0.0,
        **QUIET,
    )
    data = {"train_dataset": texts("prompt"), "processing_class": tokenizer()}
    trainer = cls(
        model=gpt2(), args=args, reward_funcs=lambda completions, **_: list(map(spread, completions)), **data, **own
    )
    torch.manual_seed(3)
    trainer.train()
    return trainer


def spread(completion):
    """A reward in which most completions differ."""
    return float(sum(map(ord, completion)) % 7)


@pytest.mark.parametrize(
    "options",
    [
        {"aligner": {"weight": 0.1, "estimator": "leave_one_out"}},
        {"aligner": {"weight": 0.1}, "source_of": lambda inputs: len(inputs[0]["prompt"])},
    ],
    ids=["leave_one_out", "sources"],
)
@pytest.mark.parametrize(("cls", "config"), [(AlignedGRPO, GRPOConfig), (AlignedRLOO, RLOOConfig)])
def test_generated_micro_batches_are_not_prepared_together(cls, config, options, tmp_path):
    owner = cls.__bases__[1].__name__
    with pytest.raises(TypeError, match=f'{owner} has a _prepare_inputs of its own.* the 4 of a step.*"split"'):
        generated(cls, config, tmp_path, **options)


def noting(cls, seen):
    """A class whose steps note their loss and their completions."""

    class Noting(cls):
        def training_step(self, model, inputs, *args):
            loss = super().training_step(model, inputs, *args)
            rows = self._buffered_inputs[(self._step - 1) % self.args.steps_per_generation]["completion_ids"]
            seen.append((float(loss), rows.tolist()))
            return loss

    return Noting


def test_generated_micro_batches_one_by_one_are_those_of_the_parent(tmp_path):
    plain, aligned = [], []
    options = {"weight": 1e-9, "objective": "variance"}
    generated(noting(GRPOTrainer, plain), GRPOConfig, tmp_path)
    trainer = generated(noting(AlignedGRPO, aligned), GRPOConfig, tmp_path, aligner=options)
    assert plain[:K] == aligned[:K]
    assert len({str(rows) for _, rows in aligned}) == 2 * K
    assert trainer.aligner.stats.passes == K + 1


@pytest.mark.parametrize(("cls", "config"), [(AlignedGRPO, GRPOConfig), (AlignedRLOO, RLOOConfig)])
def test_losses_without_old_log_probabilities_are_warned_of(cls, config, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = generated(cls, config, tmp_path, steps_per_generation=K, aligner={"weight": 1e-9, "objective": "dot"})
        generated(cls, config, tmp_path, aligner={"weight": 1e-9, "objective": "dot"})
        generated(cls, config, tmp_path, steps_per_generation=K, aligner={"weight": 0.0})
    found = [str(w.message) for w in caught if "the same to the last bit" in str(w.message)]
    assert len(found) == (cls is AlignedGRPO)  # RLOO computes them in any case
    assert (float(trainer.aligner.stats.dot) == 0) is bool(found)
