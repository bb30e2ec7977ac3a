"""What happens over the steps of a run: losses that are kept and added up, autocast that ends, inspections with `every`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradalign

K = 4


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def micro_batches(seed=1):
    x = torch.randn(8 * K, 8, generator=torch.Generator().manual_seed(seed))
    return gradalign.chunk(x * torch.linspace(0.2, 3, 8 * K)[:, None], K)


def steps(aligner, model, loss_fn, num):
    found = []
    for _ in range(num):
        model.zero_grad()
        aligner.backward(loss_fn, micro_batches())
        found.append(aligner.stats)
    return found


@pytest.mark.parametrize("estimator", ["split", "leave_one_out", "prefix", "exact"])
def test_a_loss_fn_may_keep_its_losses_and_write_into_them(estimator):
    model, mean = perceptron(), []

    def loss_fn(x):
        loss = model(x).square().mean()
        if not aligner.displaced:
            mean[:] = [mean[0].mul_(0.9).add_(loss.detach(), alpha=0.1)] if mean else [loss.detach()]
        return loss

    aligner = gradalign.GradAlign(model, 0.03, objective="variance", estimator=estimator)
    aligner.backward(loss_fn, micro_batches())
    with torch.no_grad():
        expected = torch.stack([model(x).square().mean() for x in micro_batches()]).mean()
    torch.testing.assert_close(aligner.stats.loss, expected)


def test_losses_that_the_caller_adds_up_in_place_leave_the_statistics_alone():
    model = perceptron()
    aligner = gradalign.GradAlign(model, 0.03)
    plain = gradalign.GradAlign(model, 0.0)
    (expected,) = steps(plain, model, lambda x: model(x).square().mean(), 1)
    model.zero_grad()
    total = None
    with aligner.accumulate(K) as step:
        for x in micro_batches():
            loss = step.backward(lambda x=x: model(x).square().mean())
            if total is None:
                total = loss
            else:
                total += loss
    torch.testing.assert_close(aligner.stats.loss, expected.loss)
    torch.testing.assert_close(total / K, expected.loss)
    model.zero_grad()
    epoch = aligner.backward(lambda x: model(x).square().mean(), micro_batches())
    first = aligner.stats
    epoch += 1
    torch.testing.assert_close(first.loss, expected.loss)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.03])
def test_the_radius_follows_autocast_that_ends_also_in_a_resumed_run(inside, weight):
    model, casts = perceptron(), [True]

    def loss_fn(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=casts[0]):
            return (Wrapped(model) if inside else model)(x).float().square().mean()

    aligner = gradalign.GradAlign(model, lambda step: 0.03 if step else weight, objective="variance")
    steps(aligner, model, loss_fn, 1)
    casts[0] = False
    resumed = gradalign.GradAlign(model, lambda step: 0.03 if step else weight, objective="variance")
    resumed.load_state_dict(aligner.state_dict())
    gradients = []
    for one in (aligner, resumed):
        (stats,) = steps(one, model, loss_fn, 1)
        assert stats.radius == 0.01
        gradients.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


class Wrapped(nn.Module):
    """Calls a model whose hooks see no autocast."""

    def __init__(self, model):
        super().__init__()
        self._called = [model]

    def forward(self, x):
        return self._called[0](x)


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_parameters_that_are_trained_later_are_seen_whatever_every_is(every):
    model, head = perceptron(), nn.Linear(8, 1)
    aligner = gradalign.GradAlign(model, 0.03, every=every)

    def loss_fn(x):
        loss = model(x).square().mean()
        return loss if aligner.num_steps < 3 else loss + head(x).square().mean()

    with pytest.raises(ValueError, match="parameters"):
        steps(aligner, model, loss_fn, 10 * every)
    assert 3 <= aligner.num_steps <= 4 * every + 3


@pytest.mark.parametrize("options", [{}, {"objective": "variance"}, {"estimator": "leave_one_out"}], ids=str)
def test_an_error_of_loss_fn_in_any_pass_comes_through(options):
    class PreemptedError(RuntimeError):
        pass

    def run(at):
        model, calls = perceptron(), 0

        def loss_fn(x):
            nonlocal calls
            calls += 1
            if calls == at:
                raise PreemptedError
            return model(x).square().mean()

        gradalign.GradAlign(model, 0.03, **options).backward(loss_fn, micro_batches())
        return calls

    for at in range(1, run(0) + 1):
        with pytest.raises(PreemptedError):
            run(at)


class OtherCheckpoint(torch.autograd.Function):
    """Computes again in its backward, as Megatron's and DeepSpeed's checkpoints do, and says in their words what it cannot."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        ctx.save_for_backward(x)
        with torch.no_grad():
            return module(x)

    @staticmethod
    def backward(ctx, g):
        if not torch.autograd._is_checkpoint_valid():
            raise RuntimeError("Checkpointing is not compatible with .grad(), please use .backward() if possible")
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.module(x)
        torch.autograd.backward(y, g)
        return x.grad, None


@pytest.mark.parametrize("kind", ["torch", "other"])
def test_a_reentrant_checkpoint_is_trained_without_the_comparison_of_gradients(kind):
    model = perceptron()

    def loss_fn(x):
        h = model[0](x)
        y = checkpoint(model[1:], h, use_reentrant=True) if kind == "torch" else OtherCheckpoint.apply(h, model[1:])
        return y.square().mean()

    gradients = []
    for compute in (loss_fn, lambda x: model(x).square().mean()):
        model.zero_grad()
        gradalign.GradAlign(model, 0.03, objective="variance").backward(compute, micro_batches())
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


class Reversible(OtherCheckpoint):
    """The same by another name, as reversible blocks are."""


FUNCTIONS = {"other": OtherCheckpoint, "reversible": Reversible}


@pytest.mark.parametrize("trained", ["all behind it", "a layer after it too", "a tied layer"])
@pytest.mark.parametrize("kind", ["torch", *FUNCTIONS])
def test_nor_is_anything_refused_where_no_trained_layer_is_in_front_of_a_reentrant_checkpoint(kind, trained):
    """As with adapters on a frozen embedding: no parameter is behind the checkpoint in the graph, so that it does not run."""
    model = perceptron()
    model[0].requires_grad_(False)

    def loss_fn(x, checkpointed=True):
        h = model[0](x).requires_grad_()
        if not checkpointed:
            y = model[1:](h)
        else:
            y = checkpoint(model[1:], h, use_reentrant=True) if kind == "torch" else FUNCTIONS[kind].apply(h, model[1:])
        if trained == "a tied layer":
            return y.square().mean() + model[2].weight.square().sum()
        return (y * model[2].bias[:1]).square().mean() if trained == "a layer after it too" else y.square().mean()

    gradients = []
    for checkpointed in (True, False):
        model.zero_grad()
        gradalign.GradAlign(model, 0.03, objective="variance").backward(
            lambda x, c=checkpointed: loss_fn(x, c), micro_batches()
        )
        gradients.append([p.grad for p in model[1:].parameters()])
    torch.testing.assert_close(*gradients)


class Harmless(torch.autograd.Function):
    """What a quantised layer is to autograd."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g


class Counting(torch.autograd.Function):
    """A gradient that is another one each time."""

    num = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        Counting.num += 1
        return -g * Counting.num


@pytest.mark.parametrize("masters", [True, False])
def test_a_function_that_leads_to_no_compared_parameter_hides_nothing(masters):
    """In front of it is an input that requires grad, or with masters an embedding that is too large to be compared."""
    torch.manual_seed(0)
    Counting.num = 0
    model = nn.Sequential(nn.Embedding(5000, 64), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = None
    if masters:
        optimizer = gradalign.optim.AdamW(model.to(torch.bfloat16).parameters(), master_weights=True)
    else:
        model[0].requires_grad_(False)

    def loss_fn(x):
        h = model[0](x)
        h = Harmless.apply(h if masters else h.requires_grad_())
        return model[3](model[2](Counting.apply(model[1](h)))).float().square().mean()

    aligner = gradalign.GradAlign(model, 0.1, optimizer=optimizer)
    with pytest.raises(RuntimeError, match="expected the same gradient when a micro-batch is evaluated again"):
        aligner.backward(loss_fn, list(torch.randint(0, 5000, (4, 16))))


def test_loading_within_a_step_is_refused():
    model = perceptron()
    aligner = gradalign.GradAlign(model, 0.03)

    def load_within():
        with aligner.accumulate(K) as step:
            for x in micro_batches():
                step.backward(lambda x=x: model(x).square().mean())
                aligner.load_state_dict({"num_steps": 100})

    with pytest.raises(RuntimeError, match="expected load_state_dict, and any other step.*got one within it"):
        load_within()
    assert all(p.grad is None for p in model.parameters())


def test_params_that_are_all_frozen_later_are_named():
    model = perceptron()
    aligner = gradalign.GradAlign(model, lambda step: 0.03 if step < 2 else 0.0, params=model[0].parameters())
    steps(aligner, model, lambda x: model(x).square().mean(), 1)
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match="params: expected at least one that requires grad; got none"):
        steps(aligner, model, lambda x: model(x).square().mean(), 1)
    aligner.load_state_dict({"num_steps": 2})
    steps(aligner, model, lambda x: model(x).square().mean(), 1)


def test_a_loss_fn_that_enables_gradients_under_no_grad_gets_the_message_of_the_library():
    model = perceptron()
    loss_fn = torch.enable_grad()(lambda x: model(x).square().mean())
    with torch.no_grad(), pytest.raises(ValueError, match="do not call under torch.no_grad"):
        gradalign.GradAlign(model, 0.03).backward(loss_fn, micro_batches())


@pytest.mark.parametrize("estimator", ["split", "leave_one_out"])
def test_an_error_while_the_replay_is_checked_leaves_random_numbers_where_it_was(estimator):
    def run(at):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        calls = found = 0

        def loss_fn(x):
            nonlocal calls, found
            calls += 1
            loss = model(x).square().mean()
            if calls == at:
                found = torch.get_rng_state()
                raise KeyError
            return loss

        try:
            gradalign.GradAlign(model, 0.1, objective="variance", estimator=estimator).backward(
                loss_fn, micro_batches()
            )
        except KeyError:
            assert torch.equal(found, torch.get_rng_state())
        return calls

    for at in range(1, run(0) + 1):
        assert run(at) == at


SCALES = [(1.0, 1.0, 1.0, 1e-4), (1.0, 1.0, 1.0, 1e-6), (1e-3, 1.0, 1e3, 1.0), (1e-7, 1e-7, 1e-7, 1e-7)]


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("estimator", ["split", "leave_one_out", "prefix", "symmetric", "exact"])
def test_losses_of_other_scales_have_a_rescaled_term_of_full_length(estimator, difference, scales):
    model = perceptron()
    if estimator == "exact" and difference == "central":
        difference = "forward"

    def added(objective):
        gradients = []
        for weight in (0.0, 0.3):
            model.zero_grad()
            options = {"objective": objective, "estimator": estimator, "normalize": "gradient"}
            aligner = gradalign.GradAlign(model, weight, **options, difference=difference)
            aligner.backward(
                lambda b: b[1] * model(b[0]).square().mean(), list(zip(micro_batches(), scales, strict=True))
            )
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
        return float((gradients[1] - gradients[0]).norm() / gradients[0].norm())

    for objective in ("dot", "variance", "cosine") if estimator != "symmetric" else ("dot",):
        assert added(objective) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize("estimator", ["leave_one_out", "exact"])
def test_a_dominating_micro_batch_is_displaced_along_the_others(estimator):
    model = perceptron()
    batches = list(zip(micro_batches(), (1.0, 1.0, 1.0, 1e6), strict=True))
    terms = {}
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        gradients = []
        for weight in (0.0, 0.1):
            model.zero_grad()
            aligner = gradalign.GradAlign(model, weight, estimator=estimator, normalize="direction")
            aligner.backward(lambda b, dtype=dtype: b[1] * model(b[0].to(dtype)).square().mean(), batches)
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
        terms[dtype] = gradients[1] - gradients[0]
    assert float(terms[torch.float64].norm()) > 0
    error = (terms[torch.float32] - terms[torch.float64]).norm() / terms[torch.float64].norm()
    assert float(error) < 0.3  # the sum over the others is rounded as the gradient that dominates


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("share", [0.25, 0.97])
def test_no_term_is_made_of_the_rounding_of_many_probes(share, difference):
    k = 96
    slopes = 1 + 0.1 * torch.randn(k, 30, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(30, 1, bias=False)
    aligner = gradalign.GradAlign(model, 0.5, normalize="gradient", probe_fraction=share, difference=difference)
    aligner.backward(lambda slope: (slope @ model.weight[0]).sum(), list(slopes))
    torch.testing.assert_close(model.weight.grad[0], slopes.mean(0))


@pytest.mark.parametrize("estimator", ["leave_one_out", "prefix", "exact"])
def test_identical_micro_batches_with_few_large_gradients_have_no_term(estimator):
    torch.manual_seed(0)
    for k in (5, 11, 13, 16, 29):
        model = nn.Linear(2, 1)
        x = torch.randn(4, 2)
        aligner = gradalign.GradAlign(model, 0.1, objective="variance", estimator=estimator)
        aligner.backward(lambda x, model=model: (model(x) - 100).square().mean(), [x] * k)
        assert float(aligner.stats.term_norm) == 0
