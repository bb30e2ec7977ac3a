"""Input validation of the modules that are trained."""

from __future__ import annotations

import copy

import pytest
import torch
from support.networks import Counting, make
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward

from gradalign import GradAlign
from gradalign.engine.models import modules_of, params_of


def test_invalid_models_are_refused():
    with pytest.raises(ValueError, match="expected a model with trainable parameters"):
        GradAlign(nn.Linear(2, 1).requires_grad_(False), 0.1)
    with pytest.raises(TypeError, match="model: expected an nn.Module or several; got int"):
        GradAlign(3, 0.1)
    with pytest.raises(TypeError, match="model: expected an nn.Module or several; got Parameter"):
        GradAlign(list(nn.Linear(2, 1).parameters()), 0.1)
    with pytest.raises(TypeError, match=r"expected real parameters; got torch.complex64"):
        GradAlign(nn.Linear(2, 1, dtype=torch.complex64), 0.1)
    with pytest.raises(ValueError, match="expected initialised parameters; got a lazy one"):
        GradAlign(nn.LazyLinear(2), 0.1)


@pytest.mark.parametrize("how", ["backward", "accumulate"])
def test_grad_not_none_on_entry_names_zero_grad_and_is_kept(how):
    model, loss_fn, batches = make(Counting)
    model.linear.bias.grad = torch.ones_like(model.linear.bias)
    aligner = GradAlign(model, 0.1)
    with pytest.raises(ValueError, match=r"optimizer\.zero_grad\(\)"):
        aligner.backward(loss_fn, batches) if how == "backward" else aligner.accumulate(4).__enter__()
    assert torch.equal(model.linear.bias.grad, torch.ones_like(model.linear.bias))


def test_hooks_that_consume_gradients_are_refused():
    model, loss_fn, batches = make(Counting)
    handle = model.linear.weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match="expected parameters without post-accumulate-grad hooks"):
        GradAlign(model, 0.1).backward(loss_fn, batches)
    handle.remove()
    GradAlign(model, 0.1).backward(loss_fn, batches)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_optimizers_in_backward_are_refused(before):
    """Whether they come before the aligner or after it; no step of theirs is taken."""
    model, loss_fn, batches = make(Counting)
    aligner = None if before else GradAlign(model, 0.1)
    theta = [p.detach().clone() for p in model.parameters()]
    _apply_optimizer_in_backward(torch.optim.SGD, [model.linear.bias], {"lr": 0.1})
    with pytest.raises(ValueError, match="got some.*step the optimizer after aligner.backward"):
        (aligner or GradAlign(model, 0.1)).backward(loss_fn, batches)
    assert all(map(torch.equal, model.parameters(), theta))


def test_wrapped_modules_are_found_inside_others():
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(TypeError, match="got FullyShardedDataParallel"):
        GradAlign(nn.Sequential(nn.Linear(3, 1), FullyShardedDataParallel()), 0.1)


def test_data_parallel_is_refused_on_several_devices_alone():
    model = nn.DataParallel(nn.Linear(3, 1))
    model.device_ids = [0]
    GradAlign(model, 0.1)
    model.device_ids = [0, 1]
    with pytest.raises(TypeError, match="expected a module on one device; got DataParallel on 2"):
        GradAlign(model, 0.1)


class Renamed(nn.Linear):
    """Shows other parameters than it has."""

    def parameters(self, recurse=True):
        return iter([self.weight])


def scripted():
    return nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))


def shared():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(layer, nn.ReLU()), layer, nn.Linear(2, 2))
    model[2].weight = layer.weight
    model.register_parameter("none", None)
    model.register_module("nothing", None)
    return model


def around():
    """A module that holds itself."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.add_module("self", model)
    return model


WALKED = {
    "transformer": lambda: nn.Transformer(8, 2, 1, 1, 16),
    "shared": shared,
    "around": around,
    "script": scripted,
    "own parameters": lambda: Renamed(2, 2),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make_model", WALKED.values(), ids=WALKED)
def test_the_walk_through_a_model_is_that_of_torch(make_model):
    model = make_model()
    assert [id(m) for m in modules_of(model)] == [id(m) for m in model.modules()]
    assert list({id(p): 0 for p in params_of(model)}) == [id(p) for p in model.parameters()]


def test_what_was_known_of_the_parameters_is_found_again_when_they_change():
    """The space of the last step is not used for other parameters, nor for the same ones of another dtype."""
    model, batches = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), list(torch.randn(4, 3, 4))
    aligner = GradAlign(model, 0.1)

    def step(dtype=torch.float32):
        aligner.backward(lambda x: model(x).square().mean(), [b.to(dtype) for b in batches])
        found = {name for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    assert step() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    model[0].requires_grad_(False)
    assert step() == {"1.weight", "1.bias"}
    model[1] = nn.Linear(4, 2)
    assert step() == {"1.weight", "1.bias"}
    model.double()
    model[0].requires_grad_(True)
    assert step(torch.float64) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a model with trainable parameters"):
        step(torch.float64)


def test_an_aligner_can_be_copied_after_a_step():
    model, batches = nn.Linear(4, 1), list(torch.randn(4, 3, 4))
    aligner = GradAlign(model, 0.1)
    aligner.backward(lambda x: model(x).square().mean(), batches)
    assert copy.deepcopy(aligner).num_steps == 1


class Added(nn.Module):
    """Two parameters whose gradients torch gives the same memory, since both are views of one gradient."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.w = (nn.Parameter(torch.randn(3)) for _ in range(3))
        self.both = lambda a, b: a.view(1, -1, 1) + b.view(1, -1, 1)

    def forward(self, x):
        return torch.tanh((x * self.w).unsqueeze(-1) + self.both(self.a, self.b))


@pytest.mark.parametrize(
    "options", [{}, {"objective": "variance"}, {"estimator": "prefix"}, {"estimator": "leave_one_out"}], ids=str
)
def test_gradients_that_share_memory_are_refused(options):
    model, data = Added(), [torch.randn(5, 3) for _ in range(4)]

    def loss_fn(x):
        return model(x).square().mean()

    with pytest.raises(RuntimeError, match=r"got those of a and b in the same memory.*add first, \(a \+ b\)"):
        GradAlign(model, 0.03, **options).backward(loss_fn, data)
    assert all(p.grad is None for p in model.parameters())
    for apart in (lambda a, b: (a + b).view(1, -1, 1), lambda a, b: a.view(1, -1, 1) + (b * 1).view(1, -1, 1)):
        model.both = apart
        GradAlign(model, 0.03, **options).backward(loss_fn, data)
        assert model.a.grad.data_ptr() != model.b.grad.data_ptr()
        model.zero_grad()


def test_gradients_beside_each_other_in_one_storage_are_no_fault():
    q, v = (nn.Parameter(torch.randn(4, 3)) for _ in range(2))
    model = nn.ParameterList([q, v])
    seen = []

    def loss_fn(x):
        return torch.tanh(x @ torch.cat([q, v]).T).square().mean()

    def backward(loss):
        loss.backward()
        seen.append((q.grad.untyped_storage().data_ptr(), v.grad.untyped_storage().data_ptr()))

    GradAlign(model, 0.03).backward(loss_fn, [torch.randn(5, 3) for _ in range(4)], backward=backward)
    assert seen[0][0] == seen[0][1]
