"""Adapters of PEFT on bases that bitsandbytes stores in 4 and 8 bits: the term is that of the base as it is read."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import gradalign

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes as bnb


class Net(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.first, self.second, self.head = linear(64, 32), linear(32, 64), nn.Linear(64, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def stored(kind, dtype):
    """A network whose inner layers are stored in 4 or 8 bits, and one with the weights that these stand for."""
    torch.manual_seed(0)
    plain = Net(nn.Linear)

    def four(rows, columns):
        return bnb.nn.Linear4bit(rows, columns, quant_type="nf4", compute_dtype=dtype)

    def eight(rows, columns):
        return bnb.nn.Linear8bitLt(rows, columns, has_fp16_weights=False)

    model = Net(four if kind == "nf4" else eight)
    model.load_state_dict(plain.state_dict())
    model = model.to("cpu")  # which quantises
    for name in ("first", "second"):
        weight = getattr(model, name).weight
        read = (
            bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            if kind == "nf4"
            else bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
        )
        with torch.no_grad():
            getattr(plain, name).weight.copy_(read)
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"
    return model, plain


def adapted(model, dora):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["first", "second"], use_dora=dora, init_lora_weights=False)
    return get_peft_model(model, config)


def term(model, batches, **options):
    """The term, as the difference that a weight makes to `.grad`, and the statistics."""
    found = []
    for weight in (0.0, 1.0):
        aligner = gradalign.GradAlign(model, weight, estimator="leave_one_out", **options)
        aligner.backward(lambda x: (model(x).float() - 1).square().mean(), batches)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
        model.zero_grad()
    return found[0] - found[1], aligner.stats


# DoRA on 8 bits does not run on a CPU in these packages.
@pytest.mark.parametrize(("kind", "dora"), [("nf4", False), ("nf4", True), ("int8", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_on_a_stored_base_are_displaced_and_trained(kind, dora, dtype):
    model, plain = (adapted(net, dora) for net in stored(kind, dtype))
    batches = list(torch.randn(4, 16, 64))
    # bitsandbytes casts the frozen biases by itself.
    base = {name: p.clone() for name, p in model.named_parameters() if not p.dtype.is_floating_point}
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        found, stats = term(model, batches)
    assert stats.radius == (0.03 if dtype == torch.bfloat16 else 0.01)
    assert [p.dtype for p in base.values()] == 2 * [torch.uint8 if kind == "nf4" else torch.int8]
    assert all(torch.equal(p, base[name]) for name, p in model.named_parameters() if name in base)
    expected, _ = term(plain, batches, difference="central")
    cosine = float(nn.functional.cosine_similarity(found, expected, dim=0))
    assert cosine > (0.99 if dtype == torch.float32 else 0.9)
