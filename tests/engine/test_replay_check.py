"""State that changes the gradient of a repeated pass, and not its loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradalign import GradAlign
from gradalign.optim import SGD


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.factor * gradient, None


class Adversarial(nn.Module):
    """A gradient reversal layer whose coefficient grows with each forward: in a counter, or in a buffer."""

    def __init__(self, counter):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head, self.domain = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(8, 1)
        self.count = 0
        if counter == "buffer":
            self.count = None
            del self.count
            self.register_buffer("count", torch.zeros(()))
        self.grows = counter != "constant"

    def forward(self, x):
        hidden = torch.tanh(self.features(x))
        factor = float(self.count) / 100
        if self.grows:
            self.count = self.count + 1
        return self.head(hidden).square().mean() + (self.domain(Reverse.apply(hidden, factor)) - 1).square().mean()


def step(counter, dtype, **options):
    model = Adversarial(counter).to(dtype)
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(4, 6, generator=generator).to(dtype) for _ in range(8)]
    aligner = GradAlign(model, 0.03, **options)
    aligner.backward(model, data)
    return aligner.num_steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"objective": "variance"}, {"estimator": "prefix"}, {"estimator": "leave_one_out"}], ids=str
)
def test_a_counter_that_only_the_backward_reads_is_refused(options, dtype):
    with pytest.raises(RuntimeError, match="expected the same gradient.*same loss.*gradient reversal layer"):
        step("Python", dtype, **options)
    assert step("buffer", dtype, **options) == 1
    assert step("constant", dtype, **options) == 1


def test_the_check_can_be_turned_off():
    assert step("Python", torch.float32, check_replay=False) == 1


class Impure:
    """A loss_fn with noise of its own: from a generator that nobody puts back, or from an iterator."""

    def __init__(self, model, source, autocast):
        self.model, self.autocast = model, autocast
        self.generator = torch.Generator().manual_seed(0)
        self.batches = iter([torch.randn(64, 16, generator=self.generator) for _ in range(100)])
        self.draw = {
            "generator": lambda x: x * (torch.rand(x.shape, generator=self.generator) > 0.3) / 0.7,
            "iterator": lambda x: next(self.batches),
            "torch": lambda x: nn.functional.dropout(x, 0.3),
        }[source]

    def __call__(self, x):
        x = self.draw(x).to(self.model[0].weight.dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return (self.model(x).float() - 1).square().mean()


@pytest.mark.parametrize("objective", ["dot", "variance"])
@pytest.mark.parametrize("how", ["autocast", "bfloat16", "float16", "somebody else differentiates", "masters"])
@pytest.mark.parametrize("source", ["generator", "iterator", "torch"])
def test_in_16_bits_the_gradient_tells_what_the_loss_is_too_coarse_for(source, how, objective):
    torch.manual_seed(0)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16, "masters": torch.bfloat16}.get(how, torch.float32)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 4)).to(dtype)
    optimizer = SGD(model.parameters(), master_weights=True) if how == "masters" else None
    aligner = GradAlign(model, 0.03, objective=objective, optimizer=optimizer)
    loss_fn = Impure(model, source, autocast=dtype == torch.float32)
    options = {"backward": lambda loss: loss.backward()} if how == "somebody else differentiates" else {}
    micro_batches = [torch.randn(64, 16) for _ in range(8)]
    if source == "torch":
        aligner.backward(loss_fn, micro_batches, **options)
        assert aligner.num_steps == 1
        return
    with pytest.raises(RuntimeError, match="expected the same (gradient|loss) when .* a torch.Generator of your own"):
        aligner.backward(loss_fn, micro_batches, **options)
    assert all(p.grad is None for p in model.parameters())


def test_weights_that_are_stored_in_8_bits_say_nothing_of_what_is_computed_in():
    class Stored(nn.Linear):
        def __init__(self, *sizes):
            super().__init__(*sizes)
            self.weight = nn.Parameter(self.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)

        def forward(self, x):
            return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), Stored(64, 4))
    micro_batches = [torch.randn(64, 16) for _ in range(8)]
    with pytest.raises(RuntimeError, match="expected the same loss"):
        GradAlign(model, 0.03).backward(Impure(model, "generator", autocast=False), micro_batches)
