"""One pass: where autocast is seen, and what it leaves."""

from __future__ import annotations

import pytest
import torch
from support.begun_step import Bowl, begun_step
from torch import nn

from gradalign import GradAlign
from gradalign.engine import graph


class AutocastInside(nn.Module):
    """Opens autocast itself, as a model prepared by an Accelerator does."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float().square().mean()

    def training_loss(self, x):
        return self.inner(x).float().square().mean()


@pytest.mark.parametrize("where", ["in forward", "around forward", "around a part", "around another method"])
def test_autocast_is_seen_wherever_it_is_opened(where):
    model = AutocastInside()
    if where == "around forward":
        model.inner.forward = torch.autocast("cpu", torch.bfloat16)(model.inner.forward)
    calls = {
        "in forward": model,
        "around forward": lambda x: model.inner(x).float().square().mean(),
        "around a part": lambda x: model.inner[2](
            torch.autocast("cpu", torch.bfloat16)(model.inner[0])(x).float()
        ).mean(),
        "around another method": torch.autocast("cpu", torch.bfloat16)(model.training_loss),
    }
    aligner = GradAlign(model, 0.1)
    for _ in range(2):
        model.zero_grad()
        aligner.backward(calls[where], list(torch.randn(4, 5, 3)))
        assert aligner.stats.radius == 0.03


def test_autocast_is_seen_in_every_step_of_a_compiled_model():
    model = nn.Linear(4, 1)
    compiled = torch.compile(model, backend="aot_eager")
    aligner = GradAlign(model, 0.1)

    def loss_fn(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return compiled(x).float().square().mean()

    for _ in range(3):
        aligner.backward(loss_fn, list(torch.randn(4, 3, 4)))
        model.zero_grad()
        assert aligner.stats.radius == 0.03


def hooks_seen(aligner, num):
    """The numbers of hooks on the model in the first forward of each step."""
    (model,) = aligner._models.modules
    seen = []

    def loss_fn(x):
        seen.append(len(model._forward_pre_hooks))
        return model(x).square().mean()

    for _ in range(num):
        first = len(seen)
        aligner.backward(loss_fn, list(torch.randn(4, 3, 2)))
        del seen[first + 1 :]
        model.zero_grad()
    assert not model._forward_pre_hooks
    return seen


@pytest.mark.parametrize(
    ("weight", "radius", "expected"),
    [
        (0.0, None, [1, 0, 0, 0]),  # the first looks at everything once
        (0.1, None, [1, 1, 1, 1]),  # the default radius depends on the precision
        (0.1, 0.01, [1, 1, 1, 0]),  # after the first steps 1, 2, 4, ... are inspected
    ],
)
def test_forwards_are_watched_where_the_step_has_to_know_their_precision(weight, radius, expected):
    torch.manual_seed(0)
    assert hooks_seen(GradAlign(nn.Linear(2, 1), weight, radius=radius), 4) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"weight": 0.0}, [1, 0, 0, 0, 0, 0]), ({"weight": 0.1, "radius": 0.01}, [5, 1, 1, 0, 1, 0])],
)
def test_graphs_are_not_looked_at_in_every_step_because_autocast_showed_once(monkeypatch, options, expected):
    torch.manual_seed(0)
    looked, look = [], graph.inspect_graph
    monkeypatch.setattr(graph, "inspect_graph", lambda *args: looked.append(1) or look(*args))
    model = nn.Linear(2, 1)
    aligner, found = GradAlign(model, **options), []

    def loss_fn(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float().square().mean()

    for _ in expected:
        before = len(looked)
        aligner.backward(loss_fn, list(torch.randn(4, 3, 2)))
        found.append(len(looked) - before)
        model.zero_grad()
    assert found == expected


@pytest.mark.parametrize("first", [True, False])
def test_the_radius_follows_autocast_that_changes_in_a_step_without_the_term(first):
    torch.manual_seed(0)
    model, casts = nn.Linear(2, 1), [first]

    def loss_fn(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=casts[0]):
            return model(x).float().square().mean()

    aligner = GradAlign(model, 0.1, every=3)
    for on in (first, first, not first, not first, not first, first, first):
        casts[0] = on
        aligner.backward(loss_fn, list(torch.randn(4, 3, 2)))
        model.zero_grad()
        assert aligner.stats.radius in (None, 0.03 if on else 0.01)


def bowl_passes():
    """The passes of a step of two micro-batches on L(c) = ||theta - c||^2, theta = (1, 2): g = 2 (theta - c), stored halved."""
    model = Bowl([1.0, 2.0], curvature=2.0)
    return model, begun_step(model).passes


def test_a_base_pass_adds_its_gradient():
    model, passes = bowl_passes()
    total = [torch.tensor([10.0, 10.0], dtype=torch.float64)]
    assert float(passes.base_pass(lambda: model([0.0, 0.0]), total)) == 5
    assert total[0].tolist() == [11.0, 12.0]
    passes.base_pass(lambda: model([0.0, 0.0]), total, ratio=3.0)
    assert total[0].tolist() == [14.0, 18.0]
    assert passes.count == 2


def test_an_isolated_pass_has_a_gradient_of_its_own():
    model, passes = bowl_passes()
    loss, g = passes.isolated_pass(lambda: model([0.0, 2.0]))
    assert (float(loss), loss.requires_grad, g[0].tolist()) == (1, False, [1.0, 0.0])


class Phase(nn.Module):
    """Its second parameter is an imaginary part behind `conj()`: autograd gives it a gradient with the negative bit."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, x):
        return torch.exp(torch.complex(self.a, self.b).conj() * x).real.sum()


@pytest.mark.parametrize("estimator", ["split", "prefix", "leave_one_out", "symmetric", "momentum", "exact"])
def test_gradients_whose_memory_has_the_other_sign(estimator):
    objective = "dot" if estimator in ("symmetric", "momentum") else "variance"
    data = list(torch.complex(*torch.randn(2, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))))

    def grads(weight, **options):
        model = Phase()
        aligner = GradAlign(model, weight, objective=objective, estimator=estimator, radius=1e-4, **options)
        for _ in range(2):  # momentum has something to compare with in the second
            model.zero_grad()
            aligner.backward(model, data)
        return torch.cat([model.a.grad, model.b.grad])

    plain = Phase()
    (plain(data[0]) / 4).backward()
    assert plain.b.grad.is_neg()  # else this tests nothing
    for x in data[1:]:
        (plain(x) / 4).backward()
    assert torch.equal(grads(0.0), torch.cat([plain.a.grad, plain.b.grad]))
    assert torch.equal(grads(0.1), grads(0.1, backend="reference"))


def test_displaced_is_true_during_a_displaced_pass_even_if_it_fails():
    model = Bowl([1.0, 2.0])
    aligner = GradAlign(model, 0.5)
    seen = []

    def loss_fn(c):
        seen.append(aligner.displaced)
        if aligner.displaced:
            raise ZeroDivisionError
        return model(c)

    with pytest.raises(ZeroDivisionError):
        aligner.backward(loss_fn, [[0.0, 0.0], [1.0, 1.0]])
    assert seen == [False, True]
    assert not aligner.displaced


def test_a_pass_can_be_replayed_from_its_random_numbers_and_buffers():
    model, passes = bowl_passes()
    start = passes.replay_state()

    def closure():
        return model(torch.rand(2).tolist())

    _, first = passes.isolated_pass(closure)
    start.put_back()
    assert float(model.num_forwards) == 0
    assert torch.equal(passes.again(closure)[0], first[0])


def test_differentiating_again_is_a_product_with_the_hessian():
    model, passes = bowl_passes()
    loss, graph = passes.differentiable(lambda: model([0.0, 0.0]), torch.ones((), dtype=torch.float64))
    assert (float(loss), graph[0].tolist()) == (5, [1.0, 2.0])
    assert passes.differentiate_again(graph, [torch.tensor([3.0, 4.0], dtype=torch.float64)])[0].tolist() == [3.0, 4.0]
    assert passes.differentiate_again(graph, [None]) == [None]
    assert passes.count == 3
