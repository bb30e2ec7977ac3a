"""The warning that a loss moves in steps which its gradient does not see, and that it does not come where none are."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from support.networks import Awkward, Counting, Spectral, make
from support.oracle import split_pairs, term
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

import gradalign
from gradalign.engine import staircase

K = 8
WARNING = "expected a loss that follows its gradient"


class StraightThrough(torch.autograd.Function):
    """Rounds in the forward; to the backward the rounding is the identity."""

    @staticmethod
    def forward(ctx, x, rounded):
        return rounded(x)

    @staticmethod
    def backward(ctx, g):
        return g, None


def int8(x):
    scale = x.abs().max() / 127
    return (x / scale).round() * scale


def float8(x):
    scale = 448 / x.abs().max()
    return (x * scale).to(torch.float8_e4m3fn).to(x.dtype) / scale


class Rounded(nn.Linear):
    """A layer whose weight, and input where `both`, are rounded in the forward."""

    rounded, both = None, False

    def forward(self, x):
        if self.rounded is None:
            return super().forward(x)
        weight = StraightThrough.apply(self.weight, self.rounded)
        return F.linear(StraightThrough.apply(x, self.rounded) if self.both else x, weight, self.bias)


def network(rounded=None, both=False, activation=nn.Tanh, width=256, seed=0):
    """A classifier with `Rounded` layers, its micro-batches and its loss."""
    torch.manual_seed(seed)
    layers = Rounded(64, width), activation(), Rounded(width, width), activation(), Rounded(width, 10)
    model = nn.Sequential(*layers)
    for layer in layers[::2]:
        layer.rounded, layer.both = rounded, both
    right = torch.randn(64, 10)
    batches = [(x, (x @ right).argmax(1)) for x in torch.randn(K, 8, 64)]
    return model, batches, lambda b: F.cross_entropy(model(b[0]), b[1])


def without_rounding(model):
    """The same parameters, in a model that computes exactly."""
    exact = copy.deepcopy(model)
    for layer in exact[::2]:
        layer.rounded = None
    return exact


def cosine_of_term(model, batches, radius):
    """Between the term of the model and the true one of the model that computes exactly."""
    exact = without_rounding(model)
    _, true, _, _ = term(
        exact, lambda b: F.cross_entropy(exact(b[0]), b[1]), batches, "dot", "direction", split_pairs(K, 2)
    )
    grads = []
    for weight in (0.0, 1.0):
        model.zero_grad()
        gradalign.GradAlign(model, weight, radius=radius, check_replay=False).backward(
            lambda b: F.cross_entropy(model(b[0]), b[1]), batches
        )
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    return float(F.cosine_similarity(grads[0] - grads[1], true, dim=0))


def warned(model, loss_fn, batches, how="backward", weight=0.01, **options):
    """The warnings of two steps about a loss that moves in steps."""
    aligner = gradalign.GradAlign(model, weight, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            if how == "backward":
                aligner.backward(loss_fn, batches)
            else:
                with aligner.accumulate(len(batches)) as step:
                    for b in batches:
                        step.backward(lambda b=b: loss_fn(b))
            model.zero_grad()
    return [w for w in caught if WARNING in str(w.message)]


# The rounding, whether of inputs too, and the radius that is named.
KINDS = {"float8": (float8, True, 0.3), "int8": (int8, False, 0.1)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("int8", {}),
        ("float8", {}),
        ("int8", {"how": "accumulate", "objective": "variance"}),
        ("float8", {"how": "accumulate"}),
        ("float8", {"objective": "norm", "difference": "central"}),
        ("int8", {"objective": "cosine", "estimator": "prefix"}),
        ("float8", {"estimator": "symmetric"}),
        ("int8", {"estimator": "leave_one_out", "telemetry": True}),
    ],
    ids=str,
)
def test_steps_that_spoil_the_term_are_warned_of_once_at_the_call(kind, options):
    rounded, both, radius = KINDS[kind]
    model, batches, loss_fn = network(rounded, both, width=128)
    before = [p.detach().clone() for p in model.parameters()]
    (warning,) = warned(model, loss_fn, batches, **options)
    assert warning.filename == __file__
    text = str(warning.message)
    assert "low-precision compute" in text
    assert "gradalign.tune" in text
    assert float(re.search(r"try radius=([\d.]+)", text).group(1)) == radius
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("rounded", "both", "poor", "radius", "fair"),
    [(int8, False, 0.7, 0.1, 0.97), (float8, True, 0.3, 0.3, 0.88)],
    ids=["int8", "float8"],
)
def test_the_term_is_poor_where_it_warns_and_better_at_the_radius_it_names(rounded, both, poor, radius, fair):
    model, batches, _ = network(rounded, both)
    assert cosine_of_term(model, batches, 0.01) < poor
    assert cosine_of_term(model, batches, radius) > fair
    assert cosine_of_term(without_rounding(model), batches, 0.01) > 0.99


def policy_gradient(model, batch):
    """The loss of GRPO without old log-probabilities: the same value at all parameters."""
    x, taken = batch
    log_p = model(x).log_softmax(1).gather(1, taken[:, None])[:, 0]
    return -(torch.exp(log_p - log_p.detach()) * x[:, 0]).mean()


@pytest.mark.parametrize(
    "options",
    [{}, {"how": "accumulate", "objective": "variance"}, {"estimator": "leave_one_out", "objective": "cosine"}],
    ids=str,
)
def test_a_loss_whose_value_is_detached_is_warned_of_once(options, monkeypatch):
    model, batches, _ = network(width=32)
    monkeypatch.setattr(f"{__name__}.WARNING", "expected a loss that moves with the parameters")
    before = [p.detach().clone() for p in model.parameters()]
    (warning,) = warned(model, lambda b: policy_gradient(model, b), batches, **options)
    assert warning.filename == __file__
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_log_probabilities_from_before_the_step_are_not_warned_of(monkeypatch):
    model, batches, _ = network(width=32)
    monkeypatch.setattr(f"{__name__}.WARNING", "expected a loss")
    with torch.no_grad():
        old = {id(b): model(b[0]).log_softmax(1).gather(1, b[1][:, None])[:, 0] for b in batches}

    def loss_fn(batch):
        x, taken = batch
        log_p = model(x).log_softmax(1).gather(1, taken[:, None])[:, 0]
        return -(torch.exp(log_p - old[id(batch)]) * x[:, 0]).mean()

    assert not warned(model, loss_fn, batches)


def test_a_loss_in_steps_longer_than_the_radius_is_warned_of(monkeypatch):
    monkeypatch.setattr(f"{__name__}.WARNING", "expected a loss that moves with the parameters")
    model = nn.Linear(8, 1, bias=False)
    nn.init.constant_(model.weight, 0.4)
    batches = list(torch.randn(K, 4, 8))
    assert warned(
        model, lambda x: (F.linear(x, StraightThrough.apply(model.weight, torch.round)) - 1).square().mean(), batches
    )


def test_steps_that_the_radius_averages_out_are_not_warned_of():
    model, batches, loss_fn = network(int8)
    assert not warned(model, loss_fn, batches, radius=0.1)
    model, batches, loss_fn = network(float8, True)
    assert not warned(model, loss_fn, batches, radius=0.3)


def test_a_warning_that_is_made_an_error_leaves_the_step_undone():
    model, batches, loss_fn = network(float8, True)
    aligner = gradalign.GradAlign(model, 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=WARNING):
            aligner.backward(loss_fn, batches)
    assert aligner.num_steps == 0
    assert all(p.grad is None for p in model.parameters())


def test_neither_without_a_term_nor_with_check_replay_off():
    model, batches, loss_fn = network(float8, True)
    assert not warned(model, loss_fn, batches, weight=0.0)
    assert not warned(model, loss_fn, batches, check_replay=False)


@pytest.mark.parametrize("radius", [0.001, None, 0.1])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.ReLU, nn.Hardtanh], ids=lambda a: a.__name__)
def test_honest_networks_are_not_warned_of(activation, radius):
    for seed, objective in enumerate(("dot", "variance", "cosine")):
        model, batches, loss_fn = network(activation=activation, width=32, seed=seed)
        assert not warned(model, loss_fn, batches, objective=objective, radius=radius)


@pytest.mark.parametrize("estimator", ["split", "prefix", "symmetric", "leave_one_out", "momentum"])
@pytest.mark.parametrize("kind", [Awkward, Spectral, Counting])
def test_dropout_batchnorm_and_moving_buffers_are_not_warned_of(kind, estimator):
    for dtype in (torch.float32, torch.float64):
        model, loss_fn, batches = make(kind, k=4, dtype=dtype)
        assert not warned(model, loss_fn, batches, estimator=estimator)


class Kinked(nn.Module):
    """A loss with a kink across every gradient, a hundredth of the radius away: its slope doubles there."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(20))

    def forward(self, x):
        along = self.w.sum() / 20**0.5
        return along + (along - 1e-4).relu() + 7.5 * along.square() + 0 * x.sum()


def test_a_kink_close_by_is_not_taken_for_steps():
    """The loss is far off its derivative, and the differences on both sides disagree, less so at larger radii."""
    torch.manual_seed(0)
    model = Kinked()
    assert not warned(model, model, list(torch.randn(4, 20)), radius=0.01)


class Bent(nn.Module):
    """A loss whose curvature changes its gradient by many times its length over a radius."""

    def __init__(self, curvature):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 50))
        self.register_buffer("centre", self.w.detach().mul(0.999))
        self.curvature = curvature

    def forward(self, x):
        return (x @ self.w).mean() + self.curvature / 2 * (self.w - self.centre).square().sum()


@pytest.mark.parametrize("radius", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("curvature", [10.0, 1e3, 1e5])
def test_strong_curvature_is_not_warned_of(curvature, radius):
    torch.manual_seed(0)
    model = Bent(curvature)
    batches = list(torch.randn(4, 8, 50))
    assert not warned(model, model, batches, radius=radius)


def test_waves_much_shorter_than_the_radius_are_not_taken_for_steps():
    """A smooth loss of period 0.06 along every parameter, at a radius where its curvature has changed its sign."""
    torch.manual_seed(0)
    model = nn.Linear(30, 1)

    def loss_fn(x):
        return torch.sin(100 * model.weight).mul(x).mean() + model(x).mean()

    for radius in (0.001, 0.01, 0.1):
        assert not warned(model, loss_fn, list(torch.randn(4, 8, 30)), radius=radius)


class Reversed(torch.autograd.Function):
    """Turns gradients round, as domain-adversarial training does."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Clamped(torch.autograd.Function):
    """Clamps gradients just above the largest of plain training, with its 1/k."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        assert float(g.abs().max()) < 0.02
        return g.clamp(-0.02, 0.02)


def test_gradients_are_as_large_as_in_plain_training():
    model, batches, _ = network(float8, True)

    def loss_fn(b):
        return F.cross_entropy(model[1:](Clamped.apply(model[:1](b[0]))), b[1])

    assert warned(model, loss_fn, batches, telemetry=True)


@pytest.mark.parametrize("how", ["reversed", "stopped"])
def test_gradients_that_are_not_the_losss_own_are_not_taken_for_steps(how):
    """The loss is far off its derivative, and yet the gradient is smooth."""
    model, batches, _ = network(width=32)
    first, rest = model[:2], model[2:]

    def loss_fn(b):
        hidden = first(b[0])
        if how == "reversed":
            return F.cross_entropy(rest(Reversed.apply(hidden)), b[1])
        return F.mse_loss(rest(hidden), rest(-hidden).detach())

    assert not warned(model, loss_fn, batches)


@pytest.mark.parametrize("cast", ["parameters", "autocast"])
def test_in_16_bits_the_loss_is_too_coarse_to_tell(cast):
    for dtype in (torch.bfloat16, torch.float16):
        model, batches, _ = network(float8, True, width=32)
        if cast == "parameters":
            model, batches = model.to(dtype), [(x.to(dtype), y) for x, y in batches]
        losses, gradients = [], []

        def loss_fn(b, model=model, losses=losses, gradients=gradients):
            losses.append(F.cross_entropy(model(b[0]).float(), b[1]))
            losses[-1].register_hook(gradients.append)
            return losses[-1]

        with torch.autocast("cpu", dtype, enabled=cast == "autocast"):
            assert not warned(model, loss_fn, batches)
        assert (len(losses), len(gradients)) == (2 * (K + 2) + 1, 2 * (K + 2) + 1)  # no more than the replay check


def test_a_large_loss_with_a_small_gradient_is_too_coarse_to_tell():
    """The loss of a staircase under a constant that hides its steps in rounding."""
    model, batches, loss_fn = network(float8, True)
    assert not warned(model, lambda b: loss_fn(b) + 1e5, batches)


def test_a_small_loss_that_is_left_of_larger_terms_is_too_coarse_to_tell():
    model, batches, loss_fn = network(width=32)
    calls = []

    def left(b):
        calls.append(1)
        return 1 + 1e-4 * loss_fn(b) - 1

    gradalign.GradAlign(model, 0.01).backward(left, batches)
    assert len(calls) == K + 2 + 1  # nothing is evaluated beside theta


def test_gradients_of_others_and_auxiliaries_are_left_alone():
    model, batches, _ = network()
    foreign = torch.ones(3, requires_grad=True)
    first = batches[0][0]

    def loss_fn(b):
        loss = F.cross_entropy(model(b[0]), b[1])
        return (loss + 0.1 * foreign.sum() if b[0] is first else loss), len(b)

    _, aux = gradalign.GradAlign(model, 0.01).backward(loss_fn, batches, has_aux=True)
    assert aux == [2] * K
    torch.testing.assert_close(foreign.grad, torch.full((3,), 0.1 / K))


def test_a_reentrant_checkpoint_is_left_alone():
    """It has no gradient by some inputs alone; the step is that without the check."""
    model, batches, _ = network(float8, True, width=32)

    def loss_fn(b):
        hidden = checkpoint(model[2:4], model[:2](b[0]), use_reentrant=True)
        return F.cross_entropy(model[4](hidden), b[1])

    grads = []
    for check in (True, False):
        assert not warned(model, loss_fn, batches, check_replay=check)
        gradalign.GradAlign(model, 0.01, check_replay=check).backward(loss_fn, batches)
        grads.append([p.grad for p in model.parameters()])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_hooks_on_gradients_see_passes_only():
    model, batches, loss_fn = network(float8, True, width=32)
    seen = []
    model[0].weight.register_hook(seen.append)
    aligner = gradalign.GradAlign(model, 0.01)
    aligner.backward(loss_fn, batches)
    assert len(seen) == aligner.stats.passes


class Handed(torch.autograd.Function):
    """x + y whose backward hands out gradients in memory that they share, or that is not their value."""

    @staticmethod
    def forward(ctx, x, y, how):
        ctx.how = how
        return x + y

    @staticmethod
    def backward(ctx, gradient):
        if ctx.how == "the same memory":
            buffer = gradient.clone()
            return buffer.view_as(buffer), buffer.view_as(buffer), None
        if ctx.how == "halves of a buffer":
            return *torch.stack((gradient, gradient)).unbind(), None
        return torch._neg_view(-gradient), gradient.clone(), None


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("how", ["the same memory", "halves of a buffer", "a negative view"])
def test_gradients_whose_memory_is_not_their_own_are_only_read(how, backend):
    if gradalign.backends.dispatch.load(backend).why_unavailable() is not None:
        pytest.skip("the native backend is not there")
    model = nn.ParameterList([torch.arange(4.0), torch.arange(4.0) / 3])
    before = [p.detach().clone() for p in model]
    zeroed = (
        how == "the same memory"
    )  # a first pass without any `.grad` is refused then, one that adds to zeros is right
    for p in model:
        p.grad = torch.zeros(4) if zeroed else None

    def loss_fn(x):
        return (Handed.apply(*model, how) * x).tanh().square().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a wrong displacement would be taken for steps
        aligner = gradalign.GradAlign(model, 0.1, backend=backend, zeroed_grads=zeroed)
        aligner.backward(loss_fn, list(torch.randn(4, 4)))
    assert all(map(torch.equal, model, before))
    assert torch.equal(model[0].grad, model[1].grad)


class Float8Linear(Rounded):
    """Named as torchao's."""


def in_16_bits(layer, rounded, autocast, **options):
    """The warnings of a float8 network, or one that only could be, under bf16 autocast or with bf16 parameters."""
    model, batches, loss_fn = network(rounded, both=True, width=128)
    for linear in model[::2]:
        linear.__class__ = layer
    if not autocast:
        model.bfloat16()
        batches = [(x.bfloat16(), y) for x, y in batches]

    def cast(b):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return loss_fn(b).float()

    return warned(model, cast, batches, **options)


@pytest.mark.parametrize("how", ["backward", "accumulate"])
@pytest.mark.parametrize("autocast", [True, False])
def test_float8_layers_are_known_in_16_bits_by_their_names(autocast, how):
    (warning,) = in_16_bits(Float8Linear, float8, autocast, how=how)
    assert warning.filename == __file__
    assert "(float8 layers, Float8Linear)" in str(warning.message)
    assert float(re.search(r"try radius=([\d.]+)", str(warning.message)).group(1)) == 0.3


def test_a_name_alone_is_not_warned_of():
    assert in_16_bits(Float8Linear, None, autocast=True) == []
    assert in_16_bits(Float8Linear, float8, autocast=True, radius=0.3) == []


def test_layers_with_other_names_are_left_alone_in_16_bits():
    assert in_16_bits(Rounded, float8, autocast=True) == []


def test_layers_of_transformer_engine_are_known_by_their_package():
    layer = type("Linear", (nn.Linear,), {"__module__": "transformer_engine.pytorch.module.linear"})
    assert staircase.float8_layer([nn.Sequential(nn.Linear(2, 2), layer(2, 2))]) == "Linear"
    assert staircase.float8_layer([nn.Linear(2, 2)]) is None
