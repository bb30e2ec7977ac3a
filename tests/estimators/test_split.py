"""`split`: the last micro-batches, or rotating ones, are compared with the others."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import oracle
from support.estimator_checks import FORMS, Case, K, check_heads, check_mean_over_orders, mean_cosine, mean_dot
from support.measure import NORMALIZATIONS, OBJECTIVES, by_hand, exact_term, measured_term, relative
from support.networks import Awkward, Counting, Spectral, make, state, trainable

import gradalign
from gradalign.estimators import Split
from gradalign.estimators.split import num_probes

CASE = Case({}, lambda k: oracle.split_pairs(k, 2), lambda k: (k + 2, k + 4))


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_term_equals_double_backward(objective, normalize, difference):
    model, loss_fn, batches = make(Awkward, k=6)
    found, _ = measured_term(
        model, loss_fn, batches, objective=objective, normalize=normalize, difference=difference, radius=1e-5
    )
    expected, _, _ = exact_term(model, loss_fn, batches, objective, normalize, oracle.split_pairs(6, 2))
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("telemetry", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", [Spectral, Counting])
def test_a_displaced_pass_replays_random_numbers_and_buffers(kind, objective, telemetry):
    model, loss_fn, batches = make(kind, k=8)
    found, _ = measured_term(model, loss_fn, batches, objective=objective, radius=1e-5, telemetry=telemetry)
    expected = by_hand(model, loss_fn, batches, objective, oracle.split_pairs(8, 2), 1e-5)
    # The second displaced pass of a chain starts from buffers that are O(radius) off: 5e-4 with spectral_norm. Buffers
    # put back before each displaced pass instead would be off by a factor of 100.
    assert relative(found, expected) < 2e-3


@pytest.mark.parametrize(("difference", "order"), [("forward", 1), ("central", 2)])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_differences_converge_at_their_order(objective, difference, order):
    model, loss_fn, batches = make(Awkward, k=4)
    expected, _, _ = exact_term(model, loss_fn, batches, objective, "direction", oracle.split_pairs(4, 1))
    errors = []
    for radius in (0.08, 0.04, 0.02):
        model.zero_grad()
        found, _ = measured_term(model, loss_fn, batches, objective=objective, difference=difference, radius=radius)
        errors.append(relative(found, expected))
    rates = [errors[0] / errors[1], errors[1] / errors[2]]
    assert all(0.7 * 2**order < rate < 1.4 * 2**order for rate in rates), (errors, rates)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_averaged_over_all_orders_it_is_the_gradient_of_A(objective):  # noqa: N802
    check_mean_over_orders({"probe_fraction": 0.5}, objective)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_params_measure_A_on_a_subset_and_the_term_reaches_all(objective, normalize):  # noqa: N802
    model, loss_fn, batches = make(Awkward, k=6)
    subset = [model.head.weight, model.conv.weight]
    mask = torch.cat([torch.full((p.numel(),), float(any(p is s for s in subset))) for p in trainable(model)])
    found, aligner = measured_term(
        model, loss_fn, batches, objective=objective, normalize=normalize, params=subset, radius=1e-5, telemetry=True
    )
    expected, g, _ = exact_term(model, loss_fn, batches, objective, normalize, oracle.split_pairs(6, 2), mask)
    assert relative(found, expected) < 1e-4
    assert float((expected * (1 - mask)).norm()) > 0.01
    seen = g * mask
    pairs = [float(seen[i] @ seen[j]) for i in range(6) for j in range(6) if i != j]
    assert float(aligner.stats.dot) == pytest.approx(sum(pairs) / 30, rel=1e-9)


@pytest.mark.parametrize(("k", "m"), [(2, 1), (3, 1), (4, 1), (6, 2), (8, 2), (10, 2), (16, 4)])
def test_number_of_probes(k, m):
    assert num_probes(k, 0.25) == m
    model, loss_fn, batches = make(Counting, k=k, rows=2)
    for difference, passes in (("forward", k + m), ("central", k + 2 * m)):
        for objective in OBJECTIVES:
            model.zero_grad()
            aligner = gradalign.GradAlign(model, 0.1, difference=difference, objective=objective)
            aligner.backward(loss_fn, batches)
            assert aligner.stats.passes == passes


def test_the_number_of_probes_is_bounded():
    assert num_probes(2, 1.0) == 1
    assert num_probes(8, 1.0) == 7
    assert num_probes(8, 1e-9) == 1


@pytest.mark.parametrize("objective", ["dot", "norm"])
@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize("difference", ["forward", "central"])
def test_lean_dot_is_the_quotient_of_the_probes_losses(objective, normalize, difference):
    model, loss_fn, batches = make(Awkward, k=6)
    _, aligner = measured_term(
        model, loss_fn, batches, objective=objective, normalize=normalize, difference=difference, radius=1e-6
    )
    _, g, _ = exact_term(model, loss_fn, batches, "dot", "none", [])
    expected = (g[4:] @ g[:4].mean(0)).mean()
    assert float(aligner.stats.dot) == pytest.approx(float(expected), rel=1e-3)
    assert aligner.stats.cosine is aligner.stats.term_norm is aligner.stats.noise_scale is None


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_telemetry_knows_every_field(objective, normalize, weight):
    model, loss_fn, batches = make(Awkward, k=6)
    before = state(model)
    torch.manual_seed(1)
    gbar, term, g, losses = oracle.term(model, loss_fn, batches, objective, normalize, oracle.split_pairs(6, 2))
    model.load_state_dict(before)
    torch.manual_seed(1)
    aligner = gradalign.GradAlign(model, weight, objective=objective, normalize=normalize, telemetry=True, radius=1e-5)
    loss = aligner.backward(loss_fn, batches)
    stats = aligner.stats
    unit = g / g.norm(dim=1, keepdim=True)
    off_diagonal = ~torch.eye(6, dtype=torch.bool)
    dot = (g @ g.T)[off_diagonal].mean()
    square = g.square().sum(1).mean()
    assert float(loss) == float(stats.loss) == pytest.approx(float(losses.mean()), rel=1e-12)
    assert float(stats.dot) == pytest.approx(float(dot), rel=1e-9)
    assert float(stats.noise_numerator) == pytest.approx(float(square - dot), rel=1e-9)
    assert float(stats.noise_denominator) == pytest.approx(float(dot), rel=1e-9)
    assert float(stats.noise_scale) == pytest.approx(float((square - dot) / dot), rel=1e-9)
    assert float(stats.grad_norm) == pytest.approx(float((gbar - weight * term).norm()), rel=1e-5)
    cosines = (unit @ unit.T)[off_diagonal].mean()
    assert float(stats.cosine) == pytest.approx(float(cosines), rel=1e-9)
    if weight:
        assert float(stats.term_norm) == pytest.approx(float(term.norm()), rel=1e-4)
        assert stats.radius == 1e-5
        assert float(stats.displacement_cosine) == pytest.approx(1.0, abs=1e-6)
        assert stats.passes == 8
    else:
        assert stats.term_norm is stats.radius is stats.displacement_cosine is None
        assert stats.passes == 6
    assert set(stats.as_dict()) == set(vars(stats))


@pytest.mark.parametrize("where", ["backward", "accumulate"])
def test_anchors_without_a_gradient_give_no_displacement_and_no_dot(where):
    model = torch.nn.Linear(3, 1, bias=False)
    aligner = gradalign.GradAlign(model, 0.1)
    batches = [torch.zeros(2, 3)] * 3 + [torch.ones(2, 3)]
    if where == "backward":
        aligner.backward(lambda x: model(x).square().mean(), batches)
    else:
        with aligner.accumulate(4) as step:
            for x in batches:
                step.backward(lambda x=x: model(x).square().mean())
    assert float(aligner.stats.dot) == 0
    assert torch.isfinite(model.weight.grad).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_anchors_whose_gradient_is_not_finite_have_no_dot(normalize, value, backend):
    model = torch.nn.Linear(3, 1)
    batches = list(torch.randn(4, 2, 3))
    batches[0][0, 0] = value
    aligner = gradalign.GradAlign(model, 0.1, normalize=normalize, backend=backend)
    aligner.backward(lambda x: model(x).square().mean(), batches)
    assert aligner.stats.dot.isnan()
    assert not aligner.stats.grad_norm.isfinite()


class Probed:
    """A model of two numbers, and which micro-batches were probes in each of its steps."""

    def __init__(self, **options):
        self.model = torch.nn.Linear(1, 1)
        self.aligner = gradalign.GradAlign(self.model, **{"weight": 0.1, "check_replay": False} | options)
        self.steps = []

    def step(self, k=8, sources=None, fail=False):
        self.steps.append([])
        self.model.zero_grad()
        try:
            self.aligner.backward(partial(self.loss, fail), list(range(k)), sources=sources)
        finally:
            self.model.zero_grad()
        return self.steps[-1]

    def loss(self, fail, place):
        if self.aligner.displaced:
            self.steps[-1].append(place)
            if fail:
                raise ArithmeticError("in a probe")
        return self.model(torch.full((1, 1), float(place + 1))).square().mean()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": 4},
        {"every": 3},
        {"weight": lambda step: float(step % 2)},
        {"weight": lambda step: 0.1 * (step > 2)},
    ],
    ids=["always", "every 4", "every 3", "zero and one", "warm-up"],
)
def test_probes_rotate_over_the_steps_that_have_the_term(options):
    run = Probed(estimator=Split(probes="rotate"), **options)
    while sum(map(bool, run.steps)) < 8:
        run.step()
    assert [probes for probes in run.steps if probes] == [[0, 1], [2, 3], [4, 5], [6, 7]] * 2


def test_whole_sources_rotate_in_the_same_way():
    run = Probed(estimator=Split(probes="rotate"), every=2)
    for _ in range(6):
        run.step(k=6, sources=list("aabbcc"))
    assert run.steps == [[0, 1], [], [2, 3], [], [4, 5], []]


def test_a_turn_is_saved_and_a_failed_step_takes_none():
    options = {"estimator": Split(probes="rotate"), "weight": lambda step: 0.1 * (step != 1)}
    whole, first, second = (Probed(**options) for _ in range(3))
    for _ in range(5):
        whole.step()
    for _ in range(3):
        first.step()
    with pytest.raises(ArithmeticError):
        first.step(fail=True)
    assert first.aligner.state_dict() == {"num_steps": 3, "turn": 2}
    second.aligner.load_state_dict(first.aligner.state_dict())
    for resumed in (first, second):
        assert [resumed.step(), resumed.step()] == whole.steps[3:] == [[4, 5], [6, 7]]


def test_a_state_without_a_turn_goes_on_with_the_number_of_steps():
    old, new = (Probed(estimator=Split(probes="rotate")) for _ in range(2))
    for _ in range(3):
        old.step()
    new.aligner.load_state_dict({"num_steps": 3})
    assert new.step() == old.step() == [6, 7]
    with pytest.raises(ValueError, match="turn: expected an integer of at least 0; got -1"):
        new.aligner.load_state_dict({"num_steps": 9, "turn": -1})
    assert new.aligner.state_dict() == {"num_steps": 4, "turn": 4}


def test_probes_that_do_not_rotate_need_no_turn():
    assert Probed().aligner.state_dict() == {"num_steps": 0}


def rotated_pairs(k, index, m=2):
    probes = [(index * m + j) % k for j in range(m)]
    return [(i, [j for j in range(k) if j not in probes], 1 / m) for i in probes]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rotated_probes_visit_every_position_equally_and_survive_a_resume(objective):
    model, loss_fn, batches = make(Counting, k=K)
    options = {"objective": objective, "estimator": Split(probes="rotate"), "check_replay": False}
    aligner = gradalign.GradAlign(model, 0.3, **options)
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
            resumed = gradalign.GradAlign(model, 0.3, **options)
            resumed.load_state_dict(aligner.state_dict())
            aligner = resumed
    assert sorted(probed) == sorted(list(range(K)) * 2)


def test_rotated_base_passes_are_the_plain_loop_in_that_order():
    model, loss_fn, batches = make(Awkward, k=K, dtype=torch.float32)
    twin, twin_loss, _ = make(Awkward, k=K, dtype=torch.float32)
    torch.manual_seed(3)
    gradalign.GradAlign(model, 1e-30, estimator=Split(probes="rotate")).backward(loss_fn, batches)
    torch.manual_seed(3)
    for i in (2, 3, 4, 5, 0, 1):
        (twin_loss(batches[i]) / K).backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(t, state(twin)[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(("normalize", "difference", "telemetry"), FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rotated_probes_give_the_term_of_double_backward(objective, normalize, difference, telemetry):
    model, loss_fn, batches = make(Awkward, k=K)
    model.eval()  # base passes come in another order: other dropout masks than the oracle's
    options = {"objective": objective, "normalize": normalize, "difference": difference, "telemetry": telemetry}
    found, aligner = measured_term(model, loss_fn, batches, radius=1e-5, estimator=Split(probes="rotate"), **options)
    expected, g, _ = exact_term(model, loss_fn, batches, objective, normalize, rotated_pairs(K, 0))
    assert relative(found, expected) < 1e-4
    assert aligner.stats.passes == (K + 4 if difference == "central" else K + 2)
    if telemetry:
        assert float(aligner.stats.dot) == pytest.approx(mean_dot(g), rel=1e-9)
    if telemetry and objective != "cosine":  # for which the pairs of two probes are not looked at
        assert float(aligner.stats.cosine) == pytest.approx(mean_cosine(g), rel=1e-9)


@pytest.mark.parametrize("normalize", ["none", "direction"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_heads_that_only_later_micro_batches_reach_count_as_zero_before(objective, normalize):
    check_heads(CASE, objective, normalize)
