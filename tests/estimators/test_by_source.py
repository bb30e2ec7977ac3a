"""Agreement between sources that have several micro-batches each, against double backward of their mean gradients."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.estimator_checks import mean_cosine, mean_dot
from support.measure import OBJECTIVES, relative
from support.networks import Awkward, make, state, trainable

import gradalign
from gradalign import baselines
from gradalign.estimators import LeaveOneOut, Split

EVEN = ("a", "b", "a", "c", "c", "b")
UNEVEN = ("a", "b", "a", "c", "a", "c")
IN_ORDER = ("a", "a", "b", "b", "c", "c")
LEAVE_ONE_OUT = {
    "device": LeaveOneOut(),
    "host": LeaveOneOut(gradients="host"),
    "recompute": LeaveOneOut(gradients="recompute"),
}
FORMS = [
    ("none", "central", False),
    ("direction", "forward", False),
    ("none", "forward", True),
    ("gradient", "forward", True),
]


def places(labels):
    """The micro-batches of each source, in the order in which sources appear."""
    return [[i for i, label in enumerate(labels) if label == name] for name in dict.fromkeys(labels)]


def all_pairs(num):
    return [(s, [t for t in range(num) if t != s], 1 / num) for s in range(num)]


def split_pairs(num, probes):
    return [(s, [t for t in range(num) if t not in probes], 1 / len(probes)) for s in probes]


def exact(model, loss_fn, batches, labels, objective, normalize, pairs):
    """(gbar, term, gradients of the sources) by double backward."""
    params, before = trainable(model), state(model)
    torch.manual_seed(1)
    graphs, g, _ = oracle.gradients(model, loss_fn, batches)
    members = places(labels)
    means = torch.stack([g[m].mean(0) for m in members])
    term = torch.zeros_like(g[0])
    for s, others, omega in pairs:
        v = oracle.displacement(objective, s, others, means)
        w = v / v.norm() if normalize == "direction" else v
        for i in members[s]:
            factor = (1 if normalize == "direction" else 2) * omega / len(members[s])
            term += factor * oracle.hvp(graphs[i], params, w)
    model.load_state_dict(before)
    gbar = g.mean(0)
    return gbar, term * gbar.norm() / term.norm() if normalize == "gradient" else term, means


def step(model, loss_fn, batches, weight=0.5, sources=None, tasks=None, steps=0, **options):
    """`.grad` of one step, the number of earlier ones being `steps`; and the aligner."""
    before, params = state(model), trainable(model)
    aligner = gradalign.GradAlign(model, weight=weight, radius=1e-5, **options)
    aligner.load_state_dict({"num_steps": steps})
    torch.manual_seed(1)
    loss = aligner.backward(loss_fn, batches, sources=sources, tasks=tasks)
    found = oracle.flat([p.grad for p in params], params)
    model.load_state_dict(before)
    model.zero_grad()
    return found, loss, aligner


def check(estimator, labels, objective, form, pairs, passes, steps=0):
    normalize, difference, telemetry = form
    model, loss_fn, batches = make(Awkward, k=len(labels))
    model.eval()  # dropout would tie the losses to the order of the base passes
    gbar, term, means = exact(model, loss_fn, batches, labels, objective, normalize, pairs)
    options = {"objective": objective, "normalize": normalize, "difference": difference, "telemetry": telemetry}
    found, loss, aligner = step(model, loss_fn, batches, sources=labels, estimator=estimator, steps=steps, **options)
    assert relative((gbar - found) / 0.5, term) < 1e-4
    with torch.no_grad():
        assert float(loss) == pytest.approx(float(torch.stack([loss_fn(b) for b in batches]).mean()), rel=1e-12)
    assert aligner.stats.passes == passes
    if telemetry:
        assert float(aligner.stats.dot) == pytest.approx(mean_dot(means), rel=1e-9)
        assert float(aligner.stats.cosine) == pytest.approx(mean_cosine(means), rel=1e-9)
        assert float(aligner.stats.noise_numerator) == pytest.approx(
            float(means.square().sum(1).mean()) - mean_dot(means), rel=1e-9
        )


# Where gradients are stored meanwhile changes nothing else: two forms are enough for the other two places.
@pytest.mark.parametrize(
    ("store", "form"),
    [("device", form) for form in FORMS] + [(place, form) for place in ("host", "recompute") for form in FORMS[1:3]],
)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("labels", [EVEN, UNEVEN])
def test_leave_one_out_compares_the_mean_gradients_of_sources(store, labels, objective, form):
    passes = (2 + (store == "recompute") + (form[1] == "central")) * len(labels)
    check(LEAVE_ONE_OUT[store], labels, objective, form, all_pairs(3), passes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("labels", [EVEN, UNEVEN, IN_ORDER])
@pytest.mark.parametrize("fraction", [0.25, 0.7])
def test_split_makes_whole_sources_probes(fraction, labels, objective, form):
    probes = [2] if fraction < 0.5 else [1, 2]
    probed = sum(len(places(labels)[s]) for s in probes)
    passes = len(labels) + (1 + (form[1] == "central")) * probed
    check(Split(fraction), labels, objective, form, split_pairs(3, probes), passes)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("normalize", ["direction", "gradient"])
@pytest.mark.parametrize("fraction", [0.25, 0.7])
def test_dot_is_that_of_sources_where_the_term_is_stored_too(fraction, normalize, hooked):
    model, loss_fn, batches = make(Awkward, k=6)
    model.eval()
    probes = [2] if fraction < 0.5 else [1, 2]
    _, _, means = exact(model, loss_fn, batches, EVEN, "dot", "none", [])
    if hooked:
        model.head.weight.register_hook(lambda g: g)
    _, _, aligner = step(model, loss_fn, batches, sources=EVEN, estimator=Split(fraction), normalize=normalize)
    pairs = [float(means[s] @ means[t]) for s in probes for t in range(3 - len(probes))]
    # A quotient of losses at radius 1e-5; the mean over pairs of micro-batches would be off by a multiple.
    assert float(aligner.stats.dot) == pytest.approx(sum(pairs) / len(pairs), rel=1e-3)
    assert aligner.stats.noise_scale is aligner.stats.noise_numerator is None
    assert aligner.stats.passes == 6 + 2 * len(probes)


@pytest.mark.parametrize(
    ("labels", "objective", "order"),
    [
        ("ababcc", "dot", [0, 1, 2, 3, 4, 5]),
        ("abaccb", "norm", [0, 1, 2, 5, 3, 4]),
        ("abaccc", "dot", [0, 2, 1, 3, 4, 5]),
        ("ababcc", "variance", [0, 2, 1, 3, 4, 5]),
        ("aabbcc", "cosine", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_base_passes_of_split_come_anchors_first(labels, objective, order):
    model, loss_fn, batches = make(Awkward, k=6)
    seen = []
    aligner = gradalign.GradAlign(model, weight=0.5, objective=objective, check_replay=False)

    def watching(numbered):
        seen.extend([numbered[0]] * (not aligner.displaced))
        return loss_fn(numbered[1])

    aligner.backward(watching, list(enumerate(batches)), sources=list(labels))
    assert seen == order


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("objective", ["dot", "cosine"])
def test_rotating_probes_take_the_sources_in_turn(objective, steps):
    estimator = Split(probe_fraction=0.34, probes="rotate")
    check(estimator, EVEN, objective, FORMS[0], split_pairs(3, [steps]), 6 + 2 * 2, steps)


@pytest.mark.parametrize("probes", ["last", "rotate"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_with_one_micro_batch_a_source_it_is_the_step_without_sources_bit_for_bit(objective, probes):
    for estimator in (LeaveOneOut(), Split(probes=probes)):
        model, loss_fn, batches = make(Awkward, k=4)
        found, _, _ = step(model, loss_fn, batches, sources="abcd".__iter__(), estimator=estimator, objective=objective)
        expected, _, _ = step(model, loss_fn, batches, estimator=estimator, objective=objective)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("weight", [0.0, lambda step: 0.5 if step else 0.0])
@pytest.mark.parametrize("labels", [EVEN, UNEVEN])
@pytest.mark.parametrize("estimator", [LeaveOneOut(), Split()])
def test_a_step_without_the_term_measures_the_agreement_of_sources(estimator, labels, weight):
    model, loss_fn, batches = make(Awkward, k=6)
    model.eval()
    _, _, means = exact(model, loss_fn, batches, labels, "dot", "none", [])
    found, _, aligner = step(model, loss_fn, batches, weight, labels, estimator=estimator, telemetry=True)
    plain, _, _ = step(model, loss_fn, batches, weight=0)
    assert torch.equal(found, plain)
    assert float(aligner.stats.dot) == pytest.approx(mean_dot(means), rel=1e-9)
    assert float(aligner.stats.cosine) == pytest.approx(mean_cosine(means), rel=1e-9)
    expected = float(means.square().sum(1).mean()) - mean_dot(means)
    assert float(aligner.stats.noise_numerator) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("estimator", [LeaveOneOut(), Split()])
def test_weight_0_is_the_plain_loop_in_the_order_of_the_micro_batches(estimator):
    model, loss_fn, batches = make(Awkward, k=6)
    found, _, _ = step(model, loss_fn, batches, weight=0, sources=EVEN, estimator=estimator)
    before = state(model)
    torch.manual_seed(1)
    for batch in batches:
        (loss_fn(batch) / 6).backward()
    params = trainable(model)
    assert torch.equal(found, oracle.flat([p.grad for p in params], params))
    model.load_state_dict(before)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("estimator", [LeaveOneOut(), LeaveOneOut(gradients="recompute"), Split(0.7)])
def test_dropout_is_replayed_and_auxiliaries_come_in_order(estimator, objective):
    model, loss_fn, batches = make(Awkward, k=6)  # its dropout is on, and its BatchNorm counts
    pairs = all_pairs(3) if isinstance(estimator, LeaveOneOut) else split_pairs(3, [1, 2])
    gbar, term, _ = exact(model, loss_fn, batches, IN_ORDER, objective, "none", pairs)
    found, _, _ = step(
        model, loss_fn, batches, sources=IN_ORDER, estimator=estimator, objective=objective, normalize="none"
    )
    assert relative((gbar - found) / 0.5, term) < 1e-4
    aligner = gradalign.GradAlign(model, weight=0.5, estimator=estimator, objective=objective)
    numbered = list(enumerate(batches))
    _, aux = aligner.backward(lambda b: (loss_fn(b[1]), b[0]), numbered, has_aux=True, sources=EVEN)
    assert aux == list(range(6))


@pytest.mark.parametrize("estimator", [LeaveOneOut(), Split(0.7)])
def test_tasks_are_measured_beside_sources(estimator):
    model, loss_fn, batches = make(Awkward, k=6)
    model.eval()
    tasks = ["x", "x", "y", "y", "x", "y"]
    _, _, plain = step(model, loss_fn, batches, weight=0, tasks=tasks)
    _, _, aligner = step(model, loss_fn, batches, sources=EVEN, tasks=tasks, estimator=estimator, objective="variance")
    assert aligner.stats.tasks == ("x", "y")
    torch.testing.assert_close(aligner.stats.task_cosines, plain.stats.task_cosines)


@pytest.mark.parametrize("labels", [IN_ORDER, "ababcc"])
def test_accumulate_takes_the_labels_up_front(labels):
    model, loss_fn, batches = make(Awkward, k=6)
    model.eval()
    labels = list(labels)
    expected, _, _ = step(model, loss_fn, batches, sources=labels, normalize="none")
    aligner = gradalign.GradAlign(model, weight=0.5, radius=1e-5, normalize="none")
    with aligner.accumulate(6, sources=labels) as open_step:
        for batch in batches:
            open_step.backward(lambda batch=batch: loss_fn(batch))
    params = trainable(model)
    assert relative(oracle.flat([p.grad for p in params], params), expected) < 1e-9


def test_accumulate_refuses_what_has_to_come_again():
    model, _, _ = make(Awkward, k=6)
    for labels, objective in ((EVEN, "dot"), (IN_ORDER, "variance")):
        aligner = gradalign.GradAlign(model, weight=0.5, objective=objective)
        with pytest.raises(ValueError, match="again, or in another order"):
            aligner.accumulate(6, sources=labels).__enter__()


@pytest.mark.parametrize("estimator", ["prefix", "symmetric", "momentum", "exact"])
def test_other_estimators_refuse_sources(estimator):
    model, loss_fn, batches = make(Awkward, k=4)
    aligner = gradalign.GradAlign(model, weight=0.5, estimator=estimator)
    with pytest.raises(ValueError, match=r"sources: expected none with .*leave_one_out"):
        aligner.backward(loss_fn, batches, sources=["a", "a", "b", "b"])


def test_baselines_refuse_sources():
    model, loss_fn, batches = make(Awkward, k=4)
    with pytest.raises(ValueError, match=r"sources: expected none with SAM"):
        baselines.SAM(model).backward(loss_fn, batches, sources=["a", "a", "b", "b"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 4, "at least 2 different labels"),
        ([1, True, 1, torch.tensor(1)], "at least 2 different labels"),
        (["a", "b"], "one label for each of the 4"),
        ("abab", "one label for each of the 4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    model, loss_fn, batches = make(Awkward, k=4)
    aligner = gradalign.GradAlign(model, weight=0.5, estimator="leave_one_out")
    with pytest.raises(ValueError, match=message):
        aligner.backward(loss_fn, batches, sources=labels)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("labels", [[0.5, 0.5, 1, 1], [None, "a", "a", "a"], [torch.ones(2)] * 4, {"a", "b"}, b"abab"])
def test_labels_that_have_no_plain_equality_are_refused(labels):
    model, loss_fn, batches = make(Awkward, k=4)
    with pytest.raises(TypeError, match="sources: expected"):
        gradalign.GradAlign(model, weight=0.5).backward(loss_fn, batches, sources=labels)
