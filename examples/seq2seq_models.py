"""Models that read one text and write another: pretrained, of two pretrained encoders, or new with a tokenizer of their own."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import torch
import training
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    EncoderDecoderModel,
    PreTrainedTokenizerFast,
)

PAD, END = "<pad>", "</s>"


def make_tokenizer(args: argparse.Namespace, texts: Iterable[str]) -> Any:
    """The tokenizer of the model, or with --scratch a new one, trained on the texts."""
    if args.scratch:
        return new_tokenizer(texts, args.vocabulary)
    name, found = training.model_source(args.model)
    return AutoTokenizer.from_pretrained(name, **found)


def make_model(args: argparse.Namespace, tokenizer: Any) -> Any:
    """The model in float32, pretrained or with --scratch new."""
    return new_model(args, tokenizer) if args.scratch else pretrained(args.model, tokenizer)


def pretrained(model: str, tokenizer: Any) -> Any:
    """T5, BART and their like as they are; an encoder alone becomes both halves.

    As in Rothe, Narayan, Severyn 2020 (arXiv:1907.12461), the decoder has the encoder's weights, a causal mask, and attention
    to the encoder's states with fresh weights.
    """
    name, found = training.model_source(model)
    kind: dict[str, Any] = {"dtype": torch.float32, **found}
    if AutoConfig.from_pretrained(name, **found).is_encoder_decoder:
        return AutoModelForSeq2SeqLM.from_pretrained(name, **kind)
    decoder = AutoModelForCausalLM.from_pretrained(name, is_decoder=True, add_cross_attention=True, **kind)
    both = EncoderDecoderModel(encoder=AutoModel.from_pretrained(name, **kind), decoder=decoder)
    for settings in (both.config, both.generation_config):
        settings.decoder_start_token_id = tokenizer.cls_token_id
        settings.eos_token_id = tokenizer.sep_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    return both


def new_model(args: argparse.Namespace, tokenizer: Any) -> Any:
    """T5 or BART with random weights."""
    both = ("encoder", "decoder")
    sizes: dict[str, Any] = {
        "t5": {
            "num_layers": args.layers,
            "num_heads": args.heads,
            "d_kv": args.width // args.heads,
            "d_ff": 4 * args.width,
            "decoder_start_token_id": tokenizer.pad_token_id,
        },
        "bart": {
            **{f"{half}_layers": args.layers for half in both},
            **{f"{half}_attention_heads": args.heads for half in both},
            **{f"{half}_ffn_dim": 4 * args.width for half in both},
            "max_position_embeddings": max(args.max_length, args.max_title_length) + 1,
            "decoder_start_token_id": tokenizer.eos_token_id,
            "forced_eos_token_id": tokenizer.eos_token_id,
        },
    }[args.scratch]
    config = AutoConfig.for_model(
        args.scratch,
        vocab_size=len(tokenizer),
        d_model=args.width,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    return AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)


def new_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the texts, with an end token after each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, END]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
