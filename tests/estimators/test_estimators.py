"""Every estimator against the same oracle; what only one of them promises stands in a file of its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from support import oracle
from support.measure import OBJECTIVES, by_hand, exact_term, measured_term, relative
from support.networks import Awkward, Counting, Spectral, make, state

import gradalign

K = 6


def prefix_pairs(k):
    return [(i, list(range(i)), 2 * i / (k * (k - 1))) for i in range(1, k)]


def symmetric_pairs(k):
    first, second = list(range((k + 1) // 2)), list(range((k + 1) // 2, k))
    return [(i, second, 0.5 / len(first)) for i in first] + [(i, first, 0.5 / len(second)) for i in second]


# name of the case: options, pairs for k, passes for k with forward and central differences
CASES = {
    "prefix": ({"estimator": "prefix"}, prefix_pairs, lambda k: (2 * k - 1, 3 * k - 2)),
    "leave_one_out": ({"estimator": "leave_one_out"}, oracle.all_pairs, lambda k: (2 * k, 3 * k)),
    "leave_one_out, host": (
        {"estimator": "leave_one_out", "gradients": "host"},
        oracle.all_pairs,
        lambda k: (2 * k, 3 * k),
    ),
    "leave_one_out, recompute": (
        {"estimator": "leave_one_out", "gradients": "recompute"},
        oracle.all_pairs,
        lambda k: (3 * k, 4 * k),
    ),
    "symmetric": ({"estimator": "symmetric"}, symmetric_pairs, lambda k: (2 * k, 3 * k)),
    "exact": ({"estimator": "exact"}, oracle.all_pairs, lambda k: (2 * k, 2 * k)),
    "split, rotated": ({"probes": "rotate"}, lambda k: rotated_pairs(k, 0), lambda k: (k + 2, k + 4)),
}


def rotated_pairs(k, index, m=2):
    probes = [(index * m + j) % k for j in range(m)]
    return [(i, [j for j in range(k) if j not in probes], 1 / m) for i in probes]


def cases(objectives=OBJECTIVES):
    return [
        (name, o) for name in CASES for o in objectives if not (name == "symmetric" and o in ("variance", "cosine"))
    ]


# Telemetry changes which gradients are looked at alone, not what a normalisation does with the term: one of them is enough.
@pytest.mark.parametrize(
    ("normalize", "difference", "telemetry"),
    [
        ("none", "central", False),
        ("direction", "forward", False),
        ("direction", "central", True),
        ("gradient", "forward", True),
    ],
)
@pytest.mark.parametrize(("case", "objective"), cases())
def test_term_equals_double_backward(case, objective, normalize, difference, telemetry):
    options, pairs, passes = CASES[case]
    model, loss_fn, batches = make(Awkward, k=K)
    if case == "split, rotated":
        model.eval()  # its base passes come in another order: other dropout masks than the oracle's
    found, aligner = measured_term(
        model,
        loss_fn,
        batches,
        objective=objective,
        normalize=normalize,
        difference=difference,
        radius=1e-5,
        telemetry=telemetry,
        **options,
    )
    expected, g, _ = exact_term(model, loss_fn, batches, objective, normalize, pairs(K))
    assert relative(found, expected) < 1e-4
    stats = aligner.stats
    assert stats.passes == passes(K)[difference == "central"]
    off_diagonal = ~torch.eye(K, dtype=torch.bool)
    if case != "split, rotated":
        assert float(stats.term_norm) == pytest.approx(float(expected.norm()), rel=1e-4)
    if telemetry:
        assert float(stats.dot) == pytest.approx(float((g @ g.T)[off_diagonal].mean()), rel=1e-9)
    if telemetry and not (
        case == "split, rotated" and objective == "cosine"
    ):  # there the probes' own pairs are not seen
        unit = g / g.norm(dim=1, keepdim=True)
        assert float(stats.cosine) == pytest.approx(float((unit @ unit.T)[off_diagonal].mean()), rel=1e-9)


@pytest.mark.parametrize("kind", [Spectral, Counting])
@pytest.mark.parametrize(("case", "objective"), [c for c in cases() if "exact" not in c[0] and "rotated" not in c[0]])
def test_displaced_passes_replay_random_numbers_and_buffers(case, objective, kind):
    options, pairs, _ = CASES[case]
    model, loss_fn, batches = make(kind, k=K)
    found, _ = measured_term(model, loss_fn, batches, objective=objective, radius=1e-5, **options)
    expected = by_hand(model, loss_fn, batches, objective, pairs(K), 1e-5)
    assert relative(found, expected) < 2e-3


@pytest.mark.parametrize(("case", "objective"), [c for c in cases() if "rotated" not in c[0]])
def test_averaged_over_all_orders_it_is_the_gradient_of_A(case, objective):  # noqa: N802
    options, _, _ = CASES[case]
    model, loss_fn, batches = make(Awkward, k=4)
    model.eval()  # dropout would tie the loss to the order
    expected, _, _ = exact_term(model, loss_fn, batches, objective, "none", oracle.all_pairs(4))
    orders, total = list(itertools.permutations(batches)), 0.0
    for order in orders:
        model.zero_grad()
        found, _ = measured_term(
            model, loss_fn, order, objective=objective, normalize="none", radius=1e-4, difference="central", **options
        )
        total = total + found / len(orders)
    assert relative(total, expected) < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rotated_probes_visit_every_position_equally_and_survive_a_resume(objective):
    model, loss_fn, batches = make(Counting, k=K)
    aligner = gradalign.GradAlign(model, 0.3, objective=objective, probes="rotate")
    order = {id(batch): i for i, batch in enumerate(batches)}
    probed, base = [], []

    def watching(batch):
        (probed if aligner.displaced else base).append(order[id(batch)])
        return loss_fn(batch), order[id(batch)]

    for step in range(6):
        model.zero_grad()
        del base[:]
        _, aux = aligner.backward(watching, batches, has_aux=True)
        assert aux == list(range(K))
        assert base == [i for i in range(K) if i not in probed[-2:]] + sorted(probed[-2:])
        if step == 2:
            resumed = gradalign.GradAlign(model, 0.3, objective=objective, probes="rotate")
            resumed.load_state_dict(aligner.state_dict())
            aligner = resumed
    assert sorted(probed) == sorted(list(range(K)) * 2)


def test_rotated_base_passes_are_the_plain_loop_in_that_order():
    model, loss_fn, batches = make(Awkward, k=K, dtype=torch.float32)
    twin, twin_loss, _ = make(Awkward, k=K, dtype=torch.float32)
    torch.manual_seed(3)
    gradalign.GradAlign(model, 1e-30, probes="rotate").backward(loss_fn, batches)
    torch.manual_seed(3)
    for i in (2, 3, 4, 5, 0, 1):
        (twin_loss(batches[i]) / K).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(t, state(twin)[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("options", [{"estimator": "leave_one_out"}, {"estimator": "symmetric"}, {"probes": "rotate"}])
def test_accumulate_refuses_what_needs_all_micro_batches(options):
    model, _, _ = make(Counting)
    with pytest.raises(ValueError, match="accumulate: expected an estimator that sees every micro-batch once"):
        gradalign.GradAlign(model, 0.1, **options).accumulate(4).__enter__()
    for resting in ({"weight": lambda step: 0.1 * step}, {"weight": 0.1, "every": 2}):  # in steps without the term too
        aligner = gradalign.GradAlign(model, **resting, **options)
        aligner.load_state_dict({"num_steps": 0 if "every" not in resting else 1})
        with pytest.raises(ValueError, match="accumulate: expected an estimator that sees every micro-batch once"):
            aligner.accumulate(4).__enter__()
    gradalign.GradAlign(model, 0.0, **options).accumulate(4).__enter__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"estimator": "symmetric", "objective": "variance"},
            'estimator "symmetric": expected objective "dot" or "norm"',
        ),
        ({"estimator": "momentum", "objective": "cosine"}, 'estimator "momentum": expected objective "dot" or "norm"'),
        ({"estimator": "momentum", "normalize": "none"}, 'estimator "momentum": expected normalize in'),
        ({"probes": "first"}, "probes: expected one of 'last', 'rotate'"),
        ({"gradients": "disk"}, "gradients: expected one of 'device', 'host', 'recompute'"),
    ],
)
def test_what_does_not_go_together(options, message):
    model, _, _ = make(Counting)
    with pytest.raises(ValueError, match=message):
        gradalign.GradAlign(model, 0.1, **options)


def test_exact_says_what_to_do_about_fused_attention():
    model = torch.nn.Linear(8, 8)

    def loss_fn(x):
        q = model(x)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q).square().mean()

    with pytest.raises(RuntimeError, match=r"exact: expected twice differentiable operations; .*SDPBackend.MATH"):
        gradalign.GradAlign(model, 0.1, estimator="exact").backward(loss_fn, list(torch.randn(2, 1, 2, 5, 8)))
    assert model.weight.grad is None


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


def test_exact_refuses_a_function_that_can_be_differentiated_once():
    """`autograd.grad` would pass its refusal by and return a Hessian-vector product that lacks a part."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    batches = list(torch.randn(4, 5, 3))
    aligner = gradalign.GradAlign(model, 0.1, estimator="exact")
    with pytest.raises(RuntimeError, match="expected twice differentiable operations; got: .*once_differentiable"):
        aligner.backward(lambda x: model[1](OnceDifferentiable.apply(model[0](x))).square().mean(), batches)


@pytest.mark.parametrize("method", ["exact", "DoubleBackward", "MAML"])
def test_a_refusal_at_the_end_of_the_loss_is_seen(method):
    """The gradient that reaches it is a constant, so that torch would differentiate twice without its part."""
    model = torch.nn.Linear(3, 1)
    make_method = {
        "exact": lambda: gradalign.GradAlign(model, 0.1, estimator="exact"),
        "DoubleBackward": lambda: gradalign.baselines.DoubleBackward(model, 0.1),
        "MAML": lambda: gradalign.baselines.MAML(model, 0.1),
    }[method]
    with pytest.raises(RuntimeError, match="got: trying to differentiate twice OnceDifferentiableBackward"):
        make_method().backward(lambda x: OnceDifferentiable.apply(model(x)).mean(), list(torch.randn(4, 5, 3)))
    assert model.weight.grad is None


def test_exact_refuses_a_backward_it_would_never_call():
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1, estimator="exact")
    with pytest.raises(ValueError, match="backward: expected None with Exact"):
        aligner.backward(loss_fn, batches, backward=torch.Tensor.backward)
    aligner.backward(loss_fn, batches)


class Heads(torch.nn.Module):
    """A trunk and one head a task: a micro-batch reaches one head only."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Linear(3, 4)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(4, 2) for _ in range(3))

    def forward(self, x, head):
        return self.heads[head](torch.tanh(self.trunk(x)))


SPLIT = ({}, lambda k: oracle.split_pairs(k, 2), None)


@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize(
    ("case", "objective"), [c for c in cases() if "rotated" not in c[0]] + [("split", o) for o in OBJECTIVES]
)
def test_heads_that_later_micro_batches_reach_count_as_zero_before(case, objective, normalize):
    options, pairs, _ = CASES.get(case, SPLIT)
    torch.manual_seed(0)
    model = Heads().double()
    batches = [(torch.randn(5, 3, dtype=torch.float64), head) for head in (0, 1, 1, 2, 0, 1)]

    def loss_fn(batch):
        return (model(*batch) - 1).square().mean()

    found, _ = measured_term(
        model, loss_fn, batches, objective=objective, normalize=normalize, difference="central", radius=1e-4, **options
    )
    expected, _, _ = exact_term(model, loss_fn, batches, objective, normalize, pairs(K))
    assert relative(found, expected) < 1e-5
