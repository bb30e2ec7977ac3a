"""Causal language modelling: a decoder on packed text, all its weights, LoRA alone, or a new one from scratch.

    python examples/causal_lm.py --train book.txt --validation other.txt --model gpt2 --method plain gradalign --seeds 3
    python examples/causal_lm.py --train Salesforce/wikitext --config wikitext-2-raw-v1 --model meta-llama/Llama-3.2-1B --lora 8
    python examples/causal_lm.py --train reviews.csv --validation held-out.csv --scratch gpt2 --layers 2 --width 128

Texts are joined, each with an end token, and cut into rows of `--block-size` tokens. The last row is shorter, so losses are
sums over the tokens of a micro-batch, divided by the tokens of the whole step: every token weighs the same.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import reading
import torch
import training
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gradalign.cli import options
from gradalign.cli.errors import CommandError

IGNORED = -100
END = "<|endoftext|>"
EVALUATION_ROWS = 16
LARGEST_EXPONENT = 709  # of which a float holds the exponential


def load_texts(data: str, split: str, args: argparse.Namespace) -> tuple[list[str], int]:
    """The texts of a file or a data set, and how many were left out because they are blank; a .txt file is one text.

    Raises:
        CommandError: there is no such column, or it does not hold texts.
    """
    if Path(data).is_file() and reading.builder_of(data) == "text":
        rows = reading.load_file(data, sample_by="document")
    else:
        rows = reading.load_part(data, split, args.config, as_texts=True)
    if args.text_column not in rows.column_names:
        raise CommandError(f"--text-column: expected one of {', '.join(rows.column_names)}; got {args.text_column!r}")
    found = list(rows[args.text_column])
    other = next((text for text in found if not isinstance(text, str | None)), None)
    if other is not None:
        raise CommandError(f"--text-column: expected texts in {args.text_column!r} of {data}; got {other!r}")
    texts = [text for text in found if text and text.strip()]
    return texts, len(found) - len(texts)


def packed(texts: Iterable[str], tokenizer: Any, block_size: int) -> list[list[int]]:
    """Rows of `block_size` token ids, the last one shorter; every text ends with the end token."""
    ids = [i for row in tokenizer(list(texts))["input_ids"] for i in (*row, tokenizer.eos_token_id)]
    rows = [ids[i : i + block_size] for i in range(0, len(ids), block_size)]
    return [row for row in rows if len(row) > 1]  # a single token predicts nothing


def batch_of(rows: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Ids padded on the right, and labels that ignore the padding: (rows, longest)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    labels = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])
    return {"input_ids": ids, "labels": labels}


def num_targets(batch: dict[str, Tensor]) -> int:
    """Tokens that are predicted: all but the first of each row."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def steps_of(rows: Sequence[Sequence[int]], pad: int, args: argparse.Namespace, seed: int) -> Iterator[list[Any]]:
    """Endless steps, whose micro-batches know the number of targets of the whole step."""
    for parts in training.shuffled(len(rows), args, seed):
        micro_batches = [batch_of([rows[i] for i in part], pad) for part in parts]
        targets = sum(map(num_targets, micro_batches))
        yield [{**micro_batch, "step_targets": targets} for micro_batch in micro_batches]


def loss_sum(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The sum over all targets of -log p(target | tokens before it)."""
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float()
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def evaluate(model: nn.Module, rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, float]:
    """Mean loss of a token, in nats, and its exponential."""
    total, targets = 0.0, 0
    for first in range(0, len(rows), EVALUATION_ROWS):
        batch = training.on_device(batch_of(rows[first : first + EVALUATION_ROWS], pad), device)
        total += float(loss_sum(model, batch))
        targets += num_targets(batch)
    loss = total / targets
    return {"loss": loss, "perplexity": math.exp(loss) if loss < LARGEST_EXPONENT else loss * math.inf}


def new_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def make_model(args: argparse.Namespace, tokenizer: Any) -> nn.Module:
    """The pretrained decoder in float32 or a new one, with LoRA where it is asked for."""
    if args.scratch:
        end = tokenizer.eos_token_id
        config = AutoConfig.for_model(
            args.scratch,
            vocab_size=len(tokenizer),
            num_hidden_layers=args.layers,
            hidden_size=args.width,
            num_attention_heads=args.heads,
            intermediate_size=4 * args.width,
            max_position_embeddings=args.block_size,
            bos_token_id=end,
            eos_token_id=end,
        )
        model = AutoModelForCausalLM.from_config(config)
    else:
        name, found_options = training.model_source(args.model)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **found_options)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and args.block_size > longest:
        raise CommandError(
            f"--block-size: expected at most {longest}, the positions of the model; got {args.block_size}"
        )
    return with_lora(model, args.lora) if args.lora else model


def with_lora(model: nn.Module, rank: int) -> nn.Module:
    """The model with its weights frozen, and adapters of a rank in the layers that PEFT chooses for its architecture."""
    from peft import LoraConfig, get_peft_model

    transposed = model.config.model_type == "gpt2"  # its layers hold the transpose of a linear layer's weight
    config = LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", fan_in_fan_out=transposed)
    return get_peft_model(model, config)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = training.parser(__doc__, model="gpt2", lr=5e-5, batch_size=16)
    add = parser.add_argument
    add("--train", required=True, metavar="TEXTS", help="text, CSV, JSON lines or Parquet file, folder or hub name")
    add("--validation", metavar="TEXTS", help="the same (default: the split of that name of --train)")
    add("--config", metavar="NAME", help="of a hub data set that has several")
    add("--text-column", default="text", metavar="NAME", help="(default: text)")
    add("--block-size", type=options.count(2), default=256, metavar="N", help="tokens of a row (default: 256)")
    add("--lora", type=options.count(1), metavar="RANK", help="train LoRA adapters of this rank alone")
    add("--scratch", metavar="TYPE", choices=("gpt2", "llama"), help="a new model, gpt2 or llama, and a new tokenizer")
    add("--layers", type=options.count(1), metavar="N", help="of --scratch (default: 2)")
    add("--width", type=options.count(1), metavar="N", help="of --scratch (default: 128)")
    add("--heads", type=options.count(1), metavar="N", help="of --scratch (default: 2)")
    add("--vocabulary", type=options.count(257), metavar="N", help="tokens of --scratch (default: 2000)")
    args = training.parse(parser, argv)
    try:
        sizes = {"layers": 2, "width": 128, "heads": 2, "vocabulary": 2000}
        options.fill_defaults(args, "--scratch", None if args.scratch else "no --scratch", **sizes)
    except CommandError as error:
        parser.error(str(error))
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, prints the metrics and returns the record."""
    args = parse(argv)
    validation = reading.validation_of(args.train, args.validation)
    found = {"train": load_texts(args.train, "train", args), "validation": load_texts(validation, "validation", args)}
    counts = reading.checked({f"texts, {name}": reading.Rows(len(part), left) for name, (part, left) in found.items()})
    texts = [part for part, _ in found.values()]
    if args.scratch:
        tokenizer = new_tokenizer(texts[0], args.vocabulary)
    else:
        name, found_options = training.model_source(args.model)
        tokenizer = AutoTokenizer.from_pretrained(name, **found_options)
    rows, held_out = (packed(part, tokenizer, args.block_size) for part in texts)
    pad = tokenizer.eos_token_id

    def make_run(seed: int) -> training.Run:
        model = make_model(args, tokenizer)
        return training.Run(
            model,
            lambda batch: loss_sum(model, batch) / batch["step_targets"],
            steps_of(rows, pad, args, seed),
            steps_per_epoch=max(1, len(rows) // args.batch_size),
            evaluate=lambda: evaluate(model, held_out, pad, args.device),
            reduction="sum",
        )

    return training.compare(args, make_run, counts)


if __name__ == "__main__":
    training.run_main(main)
