"""Arguments of an aligner or baseline as attributes: read, assigned to, and shown by `repr`."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from gradalign import GradAlign
from gradalign.baselines import FOMAML, MAML, SAM, Reptile
from gradalign.engine.given_once import QUIET
from gradalign.estimators import Split

GIVEN = {"weight": 0.1, "objective": "dot", "radius": None, "estimator": "split", "every": 1, "params": None}


@pytest.mark.parametrize("name", GIVEN)
def test_an_argument_can_be_read_and_not_assigned(name):
    aligner = copy.deepcopy(GradAlign(nn.Linear(2, 1), 0.1))
    with pytest.raises(AttributeError, match=f"{name}: expected as an argument of GradAlign; got an assignment"):
        setattr(aligner, name, 0.3)
    assert getattr(aligner, name) == GIVEN[name]


def test_what_is_read_is_what_was_given():
    model, estimator = nn.Linear(2, 1), Split(probes="rotate")
    schedule = lambda step: 0.1  # noqa: E731
    aligner = GradAlign(model, schedule, estimator=estimator, radius=0.02)
    assert aligner.model is model
    assert aligner.weight is schedule
    assert (aligner.estimator, aligner.radius, aligner.scope) == (estimator, 0.02, "all")
    assert (Reptile(model, 0.1).inner_lr, SAM(model).rho) == (0.1, 0.05)


@pytest.mark.parametrize(
    "given", [lambda model: model.parameters(), lambda model: dict(model.named_parameters()).values()]
)
def test_parameters_of_an_iterator_can_be_read_copied_and_pickled(given):
    model = nn.Linear(2, 1)
    aligner = GradAlign(iter([model]), 0.1, params=given(model))
    for found in (aligner, copy.deepcopy(aligner), pickle.loads(pickle.dumps(aligner))):
        (net,) = found.model
        assert [id(p) for p in found.params] == [id(p) for p in net.parameters()]


def test_the_signature_and_its_errors_stay():
    assert list(inspect.signature(GradAlign).parameters)[:3] == ["model", "weight", "objective"]
    with pytest.raises(TypeError, match=r"GradAlign.__init__\(\) missing 1 required positional argument: 'weight'"):
        GradAlign(nn.Linear(2, 1))
    with pytest.raises(AttributeError, match="GradAlign keeps no attribute 'weight'"):
        GradAlign.weight  # noqa: B018


def test_repr_shows_the_settings_in_one_line():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).requires_grad_(False))
    aligner = GradAlign(net, 0.03, objective="variance", estimator=Split(probes="rotate"), every=2)
    assert repr(aligner) == (
        "GradAlign(Sequential, weight=0.03, objective='variance', normalize='direction', "
        "estimator=Split(probe_fraction=0.25, probes='rotate'), difference='forward', radius=None, every=2, scope='all'; "
        "trains 8 parameters in 2 tensors)"
    )
    linear = nn.Linear(2, 1)
    assert repr(GradAlign([net, linear], lambda step: 0.1, params=linear.parameters())) == (
        "GradAlign([Sequential, Linear], weight=schedule, objective='dot', normalize='direction', estimator='split', "
        "difference='forward', radius=None, params=2 tensors, scope='all'; trains 11 parameters in 4 tensors)"
    )


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        (lambda model: Reptile(model, 0.1), "Reptile(Linear, inner_lr=0.1; trains 3 parameters in 2 tensors)"),
        (lambda model: FOMAML(model, 0.1), "FOMAML(Linear, inner_lr=0.1; trains 3 parameters in 2 tensors)"),
        (lambda model: MAML(model, 0.1), "MAML(Linear, inner_lr=0.1; trains 3 parameters in 2 tensors)"),
        (lambda model: SAM(model), "SAM(Linear, rho=0.05; trains 3 parameters in 2 tensors)"),
        (
            lambda model: SAM(model, per_micro_batch=True, scaler=torch.amp.GradScaler("cpu")),
            "SAM(Linear, rho=0.05, per_micro_batch=True, scaler=GradScaler; trains 3 parameters in 2 tensors)",
        ),
    ],
)
def test_repr_of_baselines(method, shown):
    aligner = method(nn.Linear(2, 1))
    assert repr(aligner) == shown
    assert repr(copy.deepcopy(aligner)) == shown


def test_what_repr_leaves_out_is_at_its_default():
    defaults = {
        name: parameter.default
        for method in (GradAlign, Reptile, SAM)
        for name, parameter in inspect.signature(method).parameters.items()
    }
    assert {name: defaults[name] for name in QUIET} == QUIET


def test_repr_of_what_is_not_built_or_broken():
    assert repr(GradAlign.__new__(GradAlign)) == "GradAlign()"
    aligner = GradAlign(nn.Linear(2, 1), 0.1)
    aligner._models = None
    assert repr(aligner).endswith("scope='all')")
    lazy = GradAlign(nn.Linear(2, 1), 0.1)
    lazy.model.weight = nn.UninitializedParameter()
    assert repr(lazy).endswith("scope='all')")


def test_repr_reads_no_tensor():
    with torch.device("meta"):  # whose numbers nobody can read
        model = nn.Linear(2, 1)
    assert "3 parameters" in repr(GradAlign(model, 0.1))


def test_the_error_says_how_a_weight_changes():
    with pytest.raises(AttributeError, match="weight=lambda step"):
        GradAlign(nn.Linear(2, 1), 0.1).weight = 0.2
    with pytest.raises(AttributeError, match="inner_lr: expected as an argument of Reptile"):
        Reptile(nn.Linear(2, 1), 0.1).inner_lr = 0.2


def test_classes_of_the_user_have_attributes_of_their_own():
    class Aligner(GradAlign):
        def __init__(self, model, name):
            super().__init__(model, 0.1)
            self.name = name

    model = nn.Linear(2, 1)
    aligner = Aligner(model, "mine")
    aligner.backward(lambda x: model(x).square().mean(), list(torch.randn(2, 4, 2)))
    assert aligner.name == "mine"
    assert aligner.weight == 0.1
    assert repr(aligner).startswith("Aligner(Linear, weight=0.1, ")


def test_a_class_of_the_user_may_take_a_name_for_itself():
    class Aligner(GradAlign):
        weight = None  # in place of the argument

        def __init__(self, model, objective):
            self.weight = 0.2
            super().__init__(model, self.weight)
            self.kind = objective

    aligner = Aligner(nn.Linear(2, 1), "mine")
    assert (aligner.weight, aligner.objective, aligner.kind) == (0.2, "dot", "mine")
