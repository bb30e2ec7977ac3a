"""Folders with a tiny model of random weights and a tiny tokenizer, as `from_pretrained` reads them."""

from __future__ import annotations

import string

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[END]"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def tiny_tokenizer():
    """Letters, digits and punctuation, one token each; pairs are [CLS] first [SEP] second [SEP]."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *string.ascii_lowercase, *string.digits, *".,:?*#@'-"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", "isolated")]
    )
    marks = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=marks
    )
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "eos": "[END]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )


def save(folder, model_type, head="AutoModel", **sizes):
    """A model of this type, and the tokenizer, in the folder; returns its name."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        model_type,
        **{**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 96, **sizes},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    getattr(transformers, head).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
