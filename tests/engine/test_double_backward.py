"""Operations that have no second derivative are refused by every method that differentiates twice."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrizations

import gradalign


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


def test_a_function_that_can_be_differentiated_once_is_refused():
    """`autograd.grad` would pass its refusal by and return a Hessian-vector product that lacks a part."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    batches = list(torch.randn(4, 5, 3))
    aligner = gradalign.GradAlign(model, 0.1, estimator="exact")
    with pytest.raises(RuntimeError, match="expected twice differentiable operations; got: .*once_differentiable"):
        aligner.backward(lambda x: model[1](OnceDifferentiable.apply(model[0](x))).square().mean(), batches)


@pytest.mark.parametrize("method", ["exact", "MAML"])
def test_such_a_function_at_the_end_of_the_loss_is_refused(method):
    """The gradient that reaches it is a constant, so that torch would differentiate twice without its part."""
    model = torch.nn.Linear(3, 1)
    make_method = {
        "exact": lambda: gradalign.GradAlign(model, 0.1, estimator="exact"),
        "MAML": lambda: gradalign.baselines.MAML(model, 0.1),
    }[method]
    with pytest.raises(RuntimeError, match="got: trying to differentiate twice OnceDifferentiableBackward"):
        make_method().backward(lambda x: OnceDifferentiable.apply(model(x)).mean(), list(torch.randn(4, 5, 3)))
    assert model.weight.grad is None


METHODS = {
    "exact": lambda model: gradalign.GradAlign(model, 0.1, estimator="exact"),
    "MAML": lambda model: gradalign.baselines.MAML(model, 0.1),
}


class RunningScale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        self.scale.mul_(0.9).add_(0.1 * x.square().mean())
        return self.linear(x).tanh() / self.scale


@pytest.mark.parametrize("method", METHODS)
def test_a_buffer_that_later_forwards_write_in_place_is_named(method):
    model = RunningScale()
    with pytest.raises(RuntimeError, match=f"{method}: expected graphs that stay as they are .* make a buffer anew"):
        METHODS[method](model).backward(lambda x: model(x).square().mean(), list(torch.randn(4, 5, 3)))
    assert model.scale == 1
    assert all(p.grad is None for p in model.parameters())


def refused(method, model, loss_fn, message):
    """The method refuses the loss and leaves no gradient."""
    with pytest.raises(RuntimeError, match=f"{method}: expected twice differentiable operations; got: .*{message}"):
        METHODS[method](model).backward(loss_fn, list(torch.randn(4, 5, 3, dtype=torch.float64)))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, torch.nn.utils.weight_norm], ids=["parametrised", "old"]
)
@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm_is_refused_where_its_second_derivative_is_wrong(method, norm, dim):
    model = norm(torch.nn.Linear(3, 2).double(), dim=dim)
    refused(method, model, lambda x: model(x).tanh().square().mean(), "weight_norm.*write the normalisation out")


def second_derivative_is_right(model):
    """Of a loss by the parameters that are trained, against differences."""
    x = torch.randn(5, 3, dtype=torch.float64)
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def loss(*values):
        return torch.func.functional_call(model, dict(zip(params, values, strict=True)), (x,)).tanh().square().sum()

    values = [p.detach().clone().requires_grad_() for p in params.values()]
    return torch.autograd.gradgradcheck(loss, values, raise_exception=False)


@pytest.mark.parametrize("method", METHODS)
def test_other_forms_of_weight_norm_are_accepted(method):
    """Torch has their second derivatives right: without the kernel, and where the direction is frozen."""
    whole, only_length, wrong = (
        parametrizations.weight_norm(torch.nn.Linear(3, 2).double(), dim=dim) for dim in (None, 0, 0)
    )
    only_length.parametrizations.weight.original1.requires_grad_(False)
    assert not second_derivative_is_right(wrong)
    for model in (whole, only_length):
        assert second_derivative_is_right(model)
        batches = list(torch.randn(4, 5, 3, dtype=torch.float64))
        METHODS[method](model).backward(lambda x, model=model: model(x).tanh().square().mean(), batches)


def test_weight_norm_is_accepted_by_exact_where_its_gradient_is_not_differentiated_again():
    terms = []
    for estimator in ("exact", "leave_one_out"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(parametrizations.weight_norm(torch.nn.Linear(3, 2)), torch.nn.Linear(2, 1)).double()
        batches, found = list(torch.randn(4, 5, 3).double()), []
        for weight in (0.0, 1.0):
            options = {"normalize": "none", "difference": "central", "radius": 1e-4, "params": model[1].parameters()}
            aligner = gradalign.GradAlign(model, weight, estimator=estimator, **options)
            aligner.backward(lambda x, model=model: model(x).tanh().square().mean(), batches)
            found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            model.zero_grad()
        terms.append(found[0] - found[1])
    assert terms[0].norm() > 1e-3
    torch.testing.assert_close(*terms, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_what_torch_compile_made_is_refused(method):
    """Dropout's mask is a buffer that a compiled backward may write over: torch would refuse it in words of its own."""
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    ).double()
    for backend in ("aot_eager", "eager"):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend)

        def loss_fn(x, compiled=compiled):
            return compiled(x).square().mean()

        if backend == "aot_eager":
            refused(method, model, loss_fn, "what torch.compile made")
        else:
            METHODS[method](model).backward(loss_fn, list(torch.randn(4, 5, 3, dtype=torch.float64)))
