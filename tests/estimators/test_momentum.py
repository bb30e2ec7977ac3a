from __future__ import annotations

import copy

import pytest
import torch
from support import oracle
from support.networks import Awkward, Counting, make, state, trainable
from torch import nn

import gradalign
from gradalign.engine.space import ParamSpace
from gradalign.estimators.momentum import Momentum, RunningMean
from gradalign.optim import SGD, AdamW


def by_hand(model, loss_fn, batches, shift):
    """Mean gradient of the micro-batches at theta + shift, in the order of the plain loop."""
    params = trainable(model)
    with torch.no_grad():
        for p, d in zip(params, shift.split([p.numel() for p in params]), strict=True):
            p += d.view_as(p)
    grads = [oracle.flat(torch.autograd.grad(loss_fn(batch), params, allow_unused=True), params) for batch in batches]
    with torch.no_grad():
        for p, d in zip(params, shift.split([p.numel() for p in params]), strict=True):
            p -= d.view_as(p)
    return torch.stack(grads).mean(0)


@pytest.mark.parametrize("telemetry", [False, True])
@pytest.mark.parametrize(("objective", "sign"), [("dot", -1), ("norm", 1)])
@pytest.mark.parametrize("how", ["backward", "accumulate"])
def test_gradients_are_taken_at_theta_minus_weight_along_the_mean_of_past_ones(how, objective, sign, telemetry):
    model, loss_fn, batches = make(Awkward, k=4)
    params, weight = trainable(model), 0.05
    aligner = gradalign.GradAlign(model, weight, estimator="momentum", objective=objective, telemetry=telemetry)
    mean = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64)
    for step in range(3):
        model.zero_grad()
        before = state(model)
        shift = sign * weight * mean / mean.norm() if step else torch.zeros_like(mean)
        torch.manual_seed(step)
        expected = by_hand(model, loss_fn, batches, shift)
        moved = state(model)
        model.load_state_dict(before)
        torch.manual_seed(step)
        if how == "backward":
            aligner.backward(loss_fn, batches)
        else:
            with aligner.accumulate(4) as open_step:
                for batch in batches:
                    open_step.backward(lambda batch=batch: loss_fn(batch))
                    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        found = oracle.flat([p.grad for p in params], params)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert aligner.stats.passes == 4
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, moved[name])
        mean = 0.9 * mean + 0.1 * found
    assert aligner.stats.radius == weight


def test_to_first_order_it_is_the_term_along_the_mean():
    model, loss_fn, batches = make(Awkward, k=4)
    model.eval()
    params = trainable(model)
    graphs, g, _ = oracle.gradients(model, loss_fn, batches)
    v = g.mean(0) / g.mean(0).norm()
    expected = torch.stack([oracle.hvp(graph, params, v) for graph in graphs]).mean(0)
    errors = []
    for weight in (1e-2, 5e-3):
        model.zero_grad()
        aligner = gradalign.GradAlign(model, weight, estimator="momentum")
        aligner.backward(loss_fn, batches)  # the mean is now along gbar
        model.zero_grad()
        aligner.backward(loss_fn, batches)
        found = (g.mean(0) - oracle.flat([p.grad for p in params], params)) / weight
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.3


def test_the_mean_is_saved_and_loaded():
    runs = []
    for interrupted in (False, True):
        model, loss_fn, batches = make(Counting, k=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        aligner = gradalign.GradAlign(model, 0.05, estimator="momentum")
        for step in range(4):
            if interrupted and step == 2:
                saved = copy.deepcopy(aligner.state_dict())
                aligner = gradalign.GradAlign(model, 0.05, estimator="momentum")
                aligner.load_state_dict(saved)
            aligner.backward(loss_fn, batches)
            optimizer.step()
            optimizer.zero_grad()
        runs.append(state(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_gradient_that_is_not_finite_leaves_the_mean_alone():
    model, loss_fn, batches = make(Counting, k=4)
    aligner = gradalign.GradAlign(model, 0.05, estimator="momentum")
    aligner.backward(loss_fn, batches)
    mean = [m.clone() for m in aligner.state_dict()["mean"]]
    model.zero_grad()
    aligner.backward(loss_fn, [(x * float("inf"), y) for x, y in batches])
    assert not torch.isfinite(model.linear.weight.grad).all()
    assert all(torch.equal(m, n) for m, n in zip(mean, aligner.state_dict()["mean"], strict=True))
    model.zero_grad()
    aligner.backward(loss_fn, batches)
    assert torch.isfinite(model.linear.weight.grad).all()


def test_a_mean_loaded_to_another_device_follows_the_parameters():
    params = [torch.nn.Parameter(torch.empty(n, device="meta")) for n in (3, 2)]
    space = ParamSpace(params, None, "reference")
    remembered = RunningMean()
    remembered.load_state_dict({"mean": [torch.ones(3), None]}, lambda: params)
    first, second = remembered.over(space)
    assert first.device.type == "meta"
    assert second is None


@pytest.mark.parametrize("options", [{"weight": lambda step: 0.0 if step < 3 else 0.1}, {"weight": 0.1, "every": 4}])
def test_steps_without_the_term_are_past_gradients_too(options):
    model = torch.nn.Linear(4, 1)
    aligner = gradalign.GradAlign(model, estimator="momentum", **options)
    aligner.load_state_dict({"num_steps": 0 if "every" not in options else 1})
    expected = torch.zeros(1, 4)
    for x in torch.randn(3, 4, 2, 4):
        aligner.backward(lambda x: model(x).square().mean(), list(x))
        expected = 0.9 * expected + 0.1 * model.weight.grad
        model.zero_grad()
    torch.testing.assert_close(aligner.state_dict()["mean"][0], expected)
    first = []

    def loss_fn(x):
        first.append(model.weight.detach().clone())
        return model(x).square().mean()

    theta = model.weight.detach().clone()
    aligner.backward(loss_fn, list(torch.randn(4, 2, 4)))
    assert not torch.equal(first[0], theta)  # the first step with the term has a direction


def test_weight_zero_remembers_nothing():
    model = torch.nn.Linear(4, 1)
    aligner = gradalign.GradAlign(model, 0.0, estimator="momentum")
    aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(4, 2, 4)))
    assert aligner.state_dict()["mean"] == []


def test_a_fresh_aligner_has_zeros_for_loading_in_place_to_fill():
    model = torch.nn.ModuleList([torch.nn.Linear(4, 1), torch.nn.Linear(4, 2)])
    model[0].bias.requires_grad_(False)
    aligner = gradalign.GradAlign(model, 0.1, estimator="momentum")
    fresh = aligner.state_dict()["mean"]
    assert [m if m is None else m.shape for m in fresh] == [(1, 4), None, (2, 4), (2,)]
    assert not any(m.any() or m.requires_grad for m in fresh if m is not None)
    aligner.backward(lambda x: model[0](x).square().mean(), list(torch.randn(4, 2, 4)))
    first, frozen, *unreached = aligner.state_dict()["mean"]
    assert first.any()
    assert frozen is None
    assert not any(m.any() for m in unreached)
    saved = aligner.state_dict()["mean"]
    aligner.load_state_dict({"num_steps": 1, "mean": saved})
    again = aligner.state_dict()["mean"]
    assert again[1] is None
    assert all(map(torch.equal, [again[0], *again[2:]], [saved[0], *saved[2:]]))


LAYERS = [((2,), (2,)), ((2,), (1, 2)), ((1,), (2,)), ((0, 1, 2), (1, 2)), ((0, 1), (1, 2))]


def frozen_but(model, layers):
    for number, layer in enumerate(model):
        layer.requires_grad_(number in layers)


@pytest.mark.parametrize("as_at_the_start", [True, False], ids=["loaded before", "loaded after"])
@pytest.mark.parametrize(("first", "then"), LAYERS)
def test_a_resumed_run_that_unfreezes_layers_goes_on_with_their_means(first, then, as_at_the_start):
    gradients = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
        aligner = gradalign.GradAlign(model, 0.5, estimator="momentum")
        frozen_but(model, first)
        for x in torch.randn(3, 4, 5, 4):
            aligner.backward(lambda x, model=model: model(x).tanh().square().mean(), list(x))
            model.zero_grad()
        if interrupted:
            saved = aligner.state_dict()
            assert sum(m is not None for m in saved["mean"]) == 2 * len(first)
            if not as_at_the_start:
                frozen_but(model, then)
            aligner = gradalign.GradAlign(model, 0.5, estimator="momentum")
            aligner.load_state_dict(saved)
            aligner = copy.copy(aligner)
        frozen_but(model, then)
        for x in torch.randn(2, 4, 5, 4):
            model.zero_grad()
            aligner.backward(lambda x, model=model: model(x).tanh().square().mean(), list(x))
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(map(torch.equal, *gradients))


def test_a_mean_that_is_loaded_before_the_parameters_are_assigned_is_theirs():
    model = nn.Linear(4, 2)
    aligner = gradalign.GradAlign(model, 0.1, estimator="momentum")
    aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(4, 2, 4)))
    saved = copy.deepcopy(aligner.state_dict())
    model.zero_grad()
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert all(
        map(torch.equal, aligner.state_dict()["mean"], saved["mean"])
    )  # as what is handed over to another aligner
    again = gradalign.GradAlign(model, 0.1, estimator="momentum")
    again.load_state_dict(saved)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    x = list(torch.randn(4, 2, 4))
    again.backward(lambda x: model(x).square().mean(), x)
    expected = [0.9 * m + 0.1 * p.grad for m, p in zip(saved["mean"], model.parameters(), strict=True)]
    torch.testing.assert_close(again.state_dict()["mean"], expected)


def test_a_run_whose_parameters_are_assigned_goes_on_with_their_mean():
    """As one that is saved and loaded."""
    gradients = []
    for resumes in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        aligner = gradalign.GradAlign(model, 0.3, estimator="momentum")
        for step in range(4):
            if step == 3:
                model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
                if resumes:
                    saved, aligner = aligner.state_dict(), gradalign.GradAlign(model, 0.3, estimator="momentum")
                    aligner.load_state_dict(saved)
            model.zero_grad()
            aligner.backward(lambda x, model=model: (model(x) - 1).square().mean(), list(torch.randn(4, 2, 4)))
        gradients.append([p.grad for p in model.parameters()])
        assert float(aligner.stats.displacement_cosine) > 0.99
        assert aligner.stats.radius == 0.3
    assert all(map(torch.equal, *gradients))


def test_the_mean_of_the_trained_parameters_alone_is_loaded_where_they_are_the_same():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    old = {"num_steps": 3, "mean": [torch.ones(1, 4), torch.ones(1)]}  # as 0.1.0 saved it
    aligner = gradalign.GradAlign(model, 0.1, estimator="momentum")
    aligner.load_state_dict(old)
    model.requires_grad_(True)
    loaded = aligner.state_dict()["mean"]
    assert loaded[:2] == [None, None]
    assert all(map(torch.equal, loaded[2:], old["mean"]))
    again = gradalign.GradAlign(model, 0.1, estimator="momentum")
    with pytest.raises(
        ValueError, match="expected the mean of the 4 parameters .*of which 4 are trained; got one of 2"
    ):
        again.load_state_dict(old)
    assert again.num_steps == 0
    with pytest.raises(
        ValueError, match=r"expected the mean of a parameter of shape \(4,\); got \(3,\); load the state"
    ):
        again.load_state_dict({"num_steps": 3, "mean": [None, torch.ones(3), None, None]})


def test_the_mean_belongs_to_its_parameters_and_not_to_their_places():
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(3)])
    first, second, third = layers
    third.requires_grad_(False)
    aligner = gradalign.GradAlign(layers, 0.1, estimator="momentum")

    def step():
        seen = []

        def loss_fn(x):
            seen.append([layer.weight.detach().clone() for layer in layers])
            return third(second(first(x))).square().mean()

        theta = [layer.weight.detach().clone() for layer in layers]
        aligner.backward(loss_fn, list(torch.randn(4, 2, 3)))
        layers.zero_grad()
        return [not torch.equal(a, b) for a, b in zip(seen[0], theta, strict=True)]

    assert step() == [False, False, False]
    first.requires_grad_(False)
    third.requires_grad_(True)
    assert step() == [False, True, False]  # the mean of `second` stays, `third` has none yet
    assert step() == [False, True, True]


@pytest.mark.parametrize(("kind", "key"), [(AdamW, "exp_avg"), (SGD, "momentum_buffer")])
def test_momentum_takes_the_first_moment_of_the_optimizer(kind, key):
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    batches = list(torch.randn(4, 5, 6, dtype=torch.float64))
    optimizer = kind(model.parameters(), lr=1e-2, **({"momentum": 0.9} if kind is SGD else {}))
    aligner = gradalign.GradAlign(model, 0.05, estimator="momentum", optimizer=optimizer)

    def loss_fn(x):
        if optimizer.state:
            seen.append([p.detach().clone() for p in model.parameters()])
        return model(x).tanh().square().mean()

    for _ in range(2):
        seen = []
        theta = [p.detach().clone() for p in model.parameters()]
        moments = [optimizer.first_moment(p) for p in model.parameters()]
        aligner.backward(loss_fn, batches)
        if moments[0] is not None:
            norm = sum(float(m.square().sum()) for m in moments) ** 0.5
            for p, t, m in zip(seen[0], theta, moments, strict=True):
                torch.testing.assert_close(p, t - 0.05 * m / norm, rtol=1e-9, atol=1e-12)
        optimizer.step()
        optimizer.zero_grad()
    assert len(seen) == 4
    assert key in optimizer.state[model.weight]
    assert aligner.state_dict()["mean"] == []


@pytest.mark.parametrize("upwards", [(True, True), (True, False)])
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_the_first_moment_of_a_group_that_maximizes_points_the_same_way(kind, upwards):
    gradients = []
    for own in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        groups = [
            {"params": layer.parameters(), "maximize": flag}
            for layer, flag in zip((model[0], model[2]), upwards, strict=True)
        ]
        optimizer = kind(groups, lr=1e-3, **({"momentum": 0.9} if kind is SGD else {}))
        aligner = gradalign.GradAlign(model, 0.1, estimator="momentum", optimizer=optimizer if own else None)
        for batches in torch.randn(2, 4, 5, 4, dtype=torch.float64):  # both means are along the first gradient then
            optimizer.zero_grad()
            aligner.backward(lambda x, model=model: model(x).square().mean(), list(batches))
            optimizer.step()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_an_optimizer_that_cannot_serve_is_refused():
    model = torch.nn.Linear(3, 1)
    without = gradalign.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="expected one with a first moment.*got SGD without momentum"):
        gradalign.GradAlign(model, 0.1, estimator="momentum", optimizer=without)
    gradalign.GradAlign(model, 0.1, optimizer=without)
    gradalign.GradAlign(
        model, 0.1, estimator="momentum", optimizer=gradalign.optim.SGD(model.parameters(), momentum=0.9)
    )
    other = gradalign.optim.AdamW(torch.nn.Linear(3, 1).parameters())
    with pytest.raises(ValueError, match="expected the optimizer of the model's parameters; got one that steps none"):
        gradalign.GradAlign(model, 0.1, optimizer=other)


def test_the_decay_of_the_mean_is_an_option():
    model = torch.nn.Linear(4, 1)
    aligner = gradalign.GradAlign(model, 0.1, estimator=Momentum(decay=0.5))
    expected = torch.zeros(1, 4)
    for x in torch.randn(3, 4, 2, 4):
        aligner.backward(lambda x: model(x).square().mean(), list(x))
        expected = 0.5 * expected + 0.5 * model.weight.grad
        model.zero_grad()
    torch.testing.assert_close(aligner.state_dict()["mean"][0], expected)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_the_mean_is_as_exact_in_every_default_dtype(default, default_dtype):
    model = torch.nn.Linear(4, 1)
    default_dtype(default)
    aligner = gradalign.GradAlign(model, 0.1, estimator=Momentum(decay=0.999))
    expected = torch.zeros(1, 4, dtype=torch.float64)
    for x in torch.randn(20, 4, 2, 4, dtype=torch.float32):
        aligner.backward(lambda x: model(x).square().mean(), list(x))
        expected = 0.999 * expected + 0.001 * model.weight.grad.double()
        model.zero_grad()
    torch.testing.assert_close(aligner.state_dict()["mean"][0].double(), expected, rtol=1e-5, atol=1e-8)


class Constrained(nn.Linear):
    """Gives its weight new memory in every forward."""

    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


def test_a_forward_that_assigns_the_data_of_its_weight_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), Constrained(4, 1))
    aligner = gradalign.GradAlign(model, 0.1, estimator="momentum")
    with pytest.raises(RuntimeError, match='estimator "momentum": expected a forward that leaves parameters alone'):
        aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(4, 2, 4)))
    assert all(p.grad is None for p in model.parameters())
