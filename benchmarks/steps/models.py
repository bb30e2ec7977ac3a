"""The models: an MLP of any size, a ResNet with BatchNorm, text encoders, decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gradalign.cli.workload import model as pretrained

MLP_LAYERS = 4
VOCABULARY = 30_522
DECODERS = {"decoder-100m": (768, 12, 12), "decoder-1b": (2048, 20, 16)}  # width, layers, heads
ENCODERS = {"bert-base": (768, 12, 12), "bert-large": (1024, 24, 16)}


def mlp_width(numel: int) -> int:
    """The width with which `MLP_LAYERS` square layers have about `numel` weights."""
    return max(2, round((numel / MLP_LAYERS) ** 0.5))


def mlp(numel: int) -> nn.Module:
    """Square layers, tanh between them: twice differentiable everywhere."""
    width = mlp_width(numel)
    layers: list[nn.Module] = []
    for _ in range(MLP_LAYERS):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut (He et al. 2016)."""

    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(wide) for _ in range(2))
        self.shortcut = nn.Conv2d(narrow, wide, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, narrow, side, side) -> (batch, wide, side / stride, side / stride)."""
        y = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def resnet() -> nn.Module:
    """Six blocks, 32 to 128 channels, 0.7M parameters; ten classes (after He et al. 2016, arXiv:1512.03385)."""
    blocks = [Block(*b) for b in ((32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1))]
    stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def encoder(name: str, eager: bool) -> tuple[nn.Module, Any, str]:
    """A classifier over a text encoder, its tokenizer, and what its weights are."""
    if name in ENCODERS:
        width, layers, heads = ENCODERS[name]
        _, tokenizer = pretrained.load_pretrained("minilm")
        import transformers

        config = transformers.BertConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
        )
        body, what = transformers.BertModel(config, add_pooling_layer=False), "random weights"
    else:
        (body, tokenizer), what = pretrained.load_pretrained(name), "pretrained"
    if eager:
        body.set_attn_implementation("eager")
    return pretrained.Classifier(body, body.config.hidden_size, 2), tokenizer, what


class Decoder(nn.Module):
    """A causal transformer with tied embeddings (Radford et al. 2019), dropout 0.1.

    Args:
        width: of the states.
        layers: their number.
        heads: of the attention.
        tokens: the longest sequence.
        eager: attention written out instead of fused.
    """

    def __init__(self, width: int, layers: int, heads: int, tokens: int, eager: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Layer(width, heads, eager) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, tokens) -> logits (batch, tokens, vocabulary)."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.tokens.weight.T


class Layer(nn.Module):
    """Attention and MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int, eager: bool) -> None:
        super().__init__()
        self.heads, self.eager = heads, eager
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        attend = causal_attention if self.eager else F.scaled_dot_product_attention
        x = x + self.out(attend(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = True) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with the future masked out, in operations that have second derivatives."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    return scores.softmax(-1) @ v


def decoder(name: str, tokens: int, eager: bool) -> nn.Module:
    """About 108M or 1.07B parameters."""
    width, layers, heads = DECODERS[name]
    return Decoder(width, layers, heads, tokens, eager)
