"""The step ops themselves: schemas, fakes, compilation, and what bad input is told."""

from __future__ import annotations

import pytest
import torch

from gradalign import ops

F64 = torch.float64
NAMES = ("adamw_step_", "sgd_step_", "lamb_step_")
each_op = pytest.mark.parametrize("name", NAMES)


def arguments(name, dtype=torch.float32, masters=False, **changes):
    """Positional arguments by name, and keywords, of one step on two tensors."""
    shapes = [(3, 5), (7,)]
    state = torch.float32 if dtype == torch.bfloat16 else dtype
    params = [torch.randn(s).to(dtype) for s in shapes]

    def moments():
        return [torch.rand(s).to(state) for s in shapes]

    first = {"params": params, "grads": [torch.randn(s).to(dtype) for s in shapes]}
    if name == "sgd_step_":
        first["momentum_buffers"] = moments()
        keywords = {"momentum": 0.9, "dampening": 0.1}
    else:
        first |= {"exp_avgs": moments(), "exp_avg_sqs": moments()}
        keywords = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    if name == "adamw_step_":
        first["max_exp_avg_sqs"] = moments()
    first["masters"] = [p.float() for p in params] if masters else []
    first["steps"] = [torch.tensor(float(i)) for i in range(2)]
    first |= {"grad_scale": torch.tensor(0.5), "lr": torch.tensor(0.1, dtype=F64), "weight_decay": torch.tensor(0.01)}
    first |= {"skip": None, "seed": None, **changes}
    return list(first.values()), keywords, first


@pytest.mark.parametrize("kind", ["plain", "skip", "masters", "seed"])
@each_op
def test_opcheck(name, kind):
    changes = {"skip": {"skip": torch.ones(())}, "seed": {"seed": torch.tensor(3)}}.get(kind, {})
    dtype = torch.bfloat16 if kind in ("masters", "seed") else torch.float32
    args, keywords, _ = arguments(name, dtype, masters=kind == "masters", **changes)
    torch.library.opcheck(getattr(torch.ops.gradalign, name).default, tuple(args), {**keywords, "zero_grads": True})


@each_op
def test_it_compiles_without_a_graph_break(name):
    op = getattr(ops, name)
    torch.manual_seed(0)
    args, keywords, eager = arguments(name)
    op(*args, **keywords)
    torch.manual_seed(0)
    args, keywords, compiled = arguments(name)
    torch.compile(lambda *a: op(*a, **keywords), fullgraph=True, backend="aot_eager")(*args)
    for key in ("params", "steps"):
        assert all(torch.equal(a, b) for a, b in zip(eager[key], compiled[key], strict=True))
    assert [float(s) for s in eager["steps"]] == [1, 2]


@each_op
def test_leaves_are_written_and_their_versions_counted(name):
    args, keywords, named = arguments(name)
    named["params"][0].requires_grad_()
    version = named["params"][0]._version
    getattr(ops, name)(*args, **keywords)
    assert named["params"][0]._version > version
    assert named["params"][0].grad_fn is None


@each_op
def test_nothing_at_all_is_fine(name):
    empty = [[] for _ in range({"adamw_step_": 7, "sgd_step_": 5, "lamb_step_": 6}[name])]
    scalars = [torch.ones(()) for _ in range(3)]
    keywords = {} if name == "sgd_step_" else {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    assert getattr(ops, name)(*empty, *scalars, **keywords) is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"steps": []},
            ValueError,
            r"expected steps to have one tensor for each of params \(2\); got 0; make them with",
        ),
        (
            {"steps": [torch.zeros(1)] * 2},
            ValueError,
            r"expected steps\[0\] to be a 0-dim tensor on cpu; got shape \(1,\)",
        ),
        ({"lr": torch.ones(2)}, ValueError, r"expected lr to be a 0-dim tensor on cpu; got shape \(2,\)"),
        (
            {"lr": torch.ones((), device="meta")},
            ValueError,
            r"expected lr to be a 0-dim tensor on cpu; got shape \(\) on meta",
        ),
        ({"grads": [torch.ones(3, 5)]}, ValueError, "expected grads to have one tensor for each of params"),
        (
            {"seed": torch.tensor(1)},
            TypeError,
            "expected bfloat16 parameters for stochastic rounding; got torch.float32",
        ),
    ],
)
@each_op
def test_bad_input_is_refused(name, changes, error, words):
    args, keywords, _ = arguments(name, **changes)
    with pytest.raises(error, match=f"{name}: {words}"):
        getattr(ops, name)(*args, **keywords)


@each_op
def test_masters_and_a_seed_are_refused(name):
    args, keywords, _ = arguments(name, torch.bfloat16, masters=True, seed=torch.tensor(1))
    with pytest.raises(ValueError, match=f"{name}: expected either masters or stochastic rounding; got both"):
        getattr(ops, name)(*args, **keywords)


def test_a_momentum_without_buffers_is_refused():
    args, keywords, _ = arguments("sgd_step_", momentum_buffers=[])
    with pytest.raises(ValueError, match="expected momentum_buffers to have one tensor for each of params"):
        ops.sgd_step_(*args, **keywords)


@each_op
def test_shared_memory_is_refused(name):
    args, keywords, named = arguments(name)
    shared = torch.randn(20)
    named["params"][0], named["grads"][0] = shared[:15].view(3, 5), shared[5:].view(3, 5)
    with pytest.raises(ValueError, match="share memory"):
        getattr(ops, name)(*args, **keywords)


@each_op
def test_a_step_tensor_of_two_parameters_is_refused(name):
    args, keywords, named = arguments(name)
    before = [p.clone() for p in named["params"]]
    shared = torch.zeros(2)
    for steps in ([shared[0], shared[0]], [named["steps"][0]] * 2):
        with pytest.raises(ValueError, match="a step tensor of its own for each of params"):
            getattr(ops, name)(*[steps if a is named["steps"] else a for a in args], **keywords)
    assert all(torch.equal(p, b) for p, b in zip(named["params"], before, strict=True))
