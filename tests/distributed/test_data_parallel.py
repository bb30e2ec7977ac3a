"""DistributedDataParallel: R ranks with k micro-batches of b rows give the gradient of one process with k of R b rows."""

from __future__ import annotations

import contextlib
import copy
import datetime
import time

import pytest
import torch
import torch.distributed as dist
from support.networks import Counting
from support.rank_cases import (
    ESTIMATORS,
    FORMS,
    K,
    Net,
    batches_of,
    cases,
    compare_with_one_process,
    difference,
    error,
    gradients,
    joint_batches,
    loss_of,
    net,
    run_steps,
    same_on_all_ranks,
)
from support.rank_collectives import averaged_by
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

import gradalign
from gradalign import GradAlign
from gradalign.estimators import LeaveOneOut, Prefix

TOLERANCE = 1e-10


def wrapped(model, **options):
    return DistributedDataParallel(model, **options)


def compared(rank, num, estimator, one_by_one, wrapper, forms=FORMS[1:3]):
    return [
        compare_with_one_process(rank, num, lambda m: wrapped(m, **wrapper), options, one_by_one=one_by_one)
        for options in cases(estimator, forms)
    ]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_and_objective_equals_one_process(two_ranks, estimator):
    for errors in two_ranks.run(compared, 2, estimator, False, {}, FORMS if estimator == "split m=2" else FORMS[1:3]):
        assert errors
        assert max(errors) < TOLERANCE


def test_four_ranks_equal_one_process(four_ranks):
    assert max(map(max, four_ranks.run(compared, 4, "split", False, {}))) < TOLERANCE


@pytest.mark.parametrize("estimator", ["split m=2", "prefix", "momentum"])
def test_accumulate_equals_one_process(two_ranks, estimator):
    assert max(map(max, two_ranks.run(compared, 2, estimator, True, {}))) < TOLERANCE


@pytest.mark.parametrize("option", ["static_graph", "find_unused_parameters"])
def test_wrappers_that_must_not_hold_back_a_reduction(two_ranks, option):
    assert max(map(max, two_ranks.run(compared, 2, "split m=2", False, {option: True}))) < TOLERANCE


def sources_compared(rank, labels):
    options = [
        options
        for estimator in ("leave_one_out", "leave_one_out recompute", "split m=2")
        for options in cases(estimator, FORMS[1:3])
    ]
    return [compare_with_one_process(rank, 2, wrapped, o, sources=labels) for o in options]


@pytest.mark.parametrize("labels", [("a", "b", "b", "a"), ("a", "b", "b", "b")])
def test_sources_equal_one_process(two_ranks, labels):
    assert max(map(max, two_ranks.run(sources_compared, labels))) < TOLERANCE


def asked_differently(rank, steps):
    """The message of the step in which ranks are asked for something else, and what is left behind."""
    model = wrapped(net())
    aligner = GradAlign(model, 0.05, objective="variance")
    batches = batches_of(rank)
    for num, sources, tasks in steps[:-1]:
        aligner.backward(loss_of(model), batches[:num], sources=sources, tasks=tasks)
        model.zero_grad()
    num, sources, tasks = steps[-1][rank]
    try:
        aligner.backward(loss_of(model), batches[:num], sources=sources, tasks=tasks)
    except ValueError as error:
        return str(error), all(p.grad is None for p in model.parameters())
    return "", False


@pytest.mark.parametrize(
    ("before", "asked", "name"),
    [
        ([], [(4, None, None), (3, None, None)], "micro-batches"),
        ([], [(4, "aabb", None), (4, "abab", None)], "sources"),
        ([], [(4, "aabb", None), (4, "bbaa", None)], "sources"),
        ([], [(4, "abcd", None), (4, "badc", None)], "sources"),
        ([(4, list("aabb"), None)] * 2, [(4, "aabb", None), (4, "abbb", None)], "sources"),
        ([], [(4, None, "xyxy"), (4, None, "xxyy")], "tasks"),
    ],
)
def test_ranks_that_are_asked_for_different_things_are_refused(two_ranks, before, asked, name):
    asked = [(num, s and list(s), t and list(t)) for num, s, t in asked]
    for message, clean in two_ranks.run(asked_differently, [*before, asked]):
        assert message.startswith(f"{name}: expected the same on all ranks")
        remedy = "cut as many" if name == "micro-batches" else "order micro-batches alike"
        assert message.endswith(f"; {remedy} on all ranks")
        assert clean


def baselines_compared(rank):
    errors = []
    for method in (
        lambda m: gradalign.baselines.SAM(m, 0.05),
        lambda m: gradalign.baselines.SAM(m, 0.05, per_micro_batch=True),
        lambda m: gradalign.baselines.FOMAML(m, 0.05),
        lambda m: gradalign.baselines.Reptile(m, 0.05),
    ):
        model = net()
        alone = copy.deepcopy(model)
        expected = run_steps(method(alone), loss_of(alone), joint_batches(2), alone)
        model = wrapped(model)
        found = run_steps(method(model), loss_of(model), batches_of(rank), model)
        errors.append(difference(found, expected))
    return errors


def test_baselines_equal_one_process(two_ranks):
    assert max(map(max, two_ranks.run(baselines_compared))) < TOLERANCE


class Heads(nn.Module):
    """A micro-batch reaches one head only, the same on all ranks or another one on each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(5, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward(self, x, heads):
        x = torch.tanh(self.trunk(x))
        return torch.stack([self.heads[head](row) for row, head in zip(x, heads, strict=True)])


def heads_compared(rank, places, objective):
    model = net(Heads)
    alone, model = copy.deepcopy(model), wrapped(model, find_unused_parameters=True)
    own = [(x, y, [places[rank][i]] * len(x)) for i, (x, y) in enumerate(batches_of(rank))]
    several = [[(*b, [places[r][i]] * 3) for i, b in enumerate(batches_of(r))] for r in range(2)]
    joint = [(torch.cat((a[0], b[0])), torch.cat((a[1], b[1])), a[2] + b[2]) for a, b in zip(*several, strict=True)]

    def loss_fn(module):
        return lambda batch: F.cross_entropy(module(batch[0], batch[2]), batch[1])

    options = {"objective": objective, "probe_fraction": 0.5}
    expected = run_steps(GradAlign(alone, 0.05, **options), loss_fn(alone), joint, alone)
    found = run_steps(GradAlign(model, 0.05, **options), loss_fn(model), own, model)
    return difference(found, expected)


@pytest.mark.parametrize("objective", ["dot", "variance"])
@pytest.mark.parametrize("places", [((0, 1, 1, 0), (0, 1, 1, 0)), ((0, 1, 1, 0), (1, 0, 1, 1))])
def test_parameters_that_some_passes_do_not_reach(two_ranks, places, objective):
    assert max(two_ranks.run(heads_compared, places, objective)) < TOLERANCE


class Stateful(Counting):
    """Its function depends on a buffer that every forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, x):
        return super().forward(x) + 0 * self.norm(x[:, :3]).sum()


def weightless_and_plain(rank, options):
    """A step with weight 0 and the loop that users write: gradients, buffers and random numbers of two steps."""
    results = []
    for aligned in (False, True):
        model = wrapped(net(Stateful), **options)
        model.module.count += 3 * rank  # rank 0's is taken
        loss_fn, aligner = loss_of(model), GradAlign(model, 0.0)
        for seed in (1, 2):
            model.zero_grad()
            batches = batches_of(rank, seed=seed)
            if aligned:
                aligner.backward(loss_fn, batches)
            else:
                for i, batch in enumerate(batches):
                    held = i + 1 < K and not options.get("static_graph") and not options.get("find_unused_parameters")
                    with model.no_sync() if held else contextlib.nullcontext():
                        (loss_fn(batch) / K).backward()
        results.append((gradients(model)[0], [b.clone() for b in model.buffers()], torch.get_rng_state()))
    (plain, buffers, state), (found, found_buffers, found_state) = results
    assert torch.equal(found, plain)
    assert all(torch.equal(a, b) for a, b in zip(buffers, found_buffers, strict=True))
    assert torch.equal(state, found_state)


@pytest.mark.parametrize(
    "options", [{}, {"broadcast_buffers": False}, {"static_graph": True}, {"find_unused_parameters": True}]
)
def test_weight_zero_is_bit_identical_to_the_plain_loop(two_ranks, options):
    two_ranks.run(weightless_and_plain, options)


def held_back(rank):
    """The same where the loop holds reductions back although some parameters may be unused."""
    results = []
    for aligned in (False, True):
        model = wrapped(net(Stateful), find_unused_parameters=True)
        model.module.count += 3 * rank
        aligner, loss_fn = GradAlign(model, 0.0), loss_of(model)
        with aligner.accumulate(K) if aligned else contextlib.nullcontext() as step:
            for i, batch in enumerate(batches_of(rank)):
                with model.no_sync() if i + 1 < K else contextlib.nullcontext():
                    if aligned:
                        step.backward(lambda batch=batch, loss_fn=loss_fn: loss_fn(batch))
                    else:
                        (loss_fn(batch) / K).backward()
        results.append((gradients(model)[0], *[b.clone() for b in model.buffers()]))
    assert all(map(torch.equal, *results))


def test_weight_zero_leaves_a_no_sync_to_the_loop(two_ranks):
    two_ranks.run(held_back)


def buffers_compared(rank, options, objective):
    alone = net(Stateful)
    model = wrapped(copy.deepcopy(alone), **options)
    model.module.count += 3 * rank
    settings = {"objective": objective, "probe_fraction": 0.5}
    expected = run_steps(GradAlign(alone, 0.05, **settings), loss_of(alone), joint_batches(2), alone, 2)
    found = run_steps(GradAlign(model, 0.05, **settings), loss_of(model), batches_of(rank), model, 2)
    assert float(model.module.count) == 2 * K
    return difference(found, expected)


@pytest.mark.parametrize("objective", ["dot", "variance"])
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}])
def test_displaced_passes_start_from_the_broadcast_buffers(two_ranks, options, objective):
    assert max(two_ranks.run(buffers_compared, options, objective)) < TOLERANCE


def inside_no_sync(rank, estimator):
    model = net()
    alone = copy.deepcopy(model)
    expected = run_steps(GradAlign(alone, 0.05, **estimator), loss_of(alone), joint_batches(2), alone)
    model = wrapped(model)
    aligner, batches = GradAlign(model, 0.05, **estimator), batches_of(rank)
    with aligner.accumulate(K) as step:
        for i, batch in enumerate(batches):
            with model.no_sync() if i + 1 < K else contextlib.nullcontext():
                step.backward(lambda batch=batch: loss_of(model)(batch))
                assert model.require_backward_grad_sync == (i + 1 == K)
    return difference((gradients(model), aligner.stats.as_dict()), expected)


@pytest.mark.parametrize("estimator", [{"objective": "variance"}, {"objective": "cosine"}, {"estimator": Prefix()}, {}])
def test_a_no_sync_around_all_but_the_last_changes_nothing(two_ranks, estimator):
    assert max(two_ranks.run(inside_no_sync, estimator)) < TOLERANCE


class SyncedNorm(nn.Module):
    """BatchNorm without buffers over the rows of all ranks (torch's SyncBatchNorm runs on GPUs only)."""

    def __init__(self, synced=True) -> None:
        super().__init__()
        self.synced = synced

    def forward(self, x):
        sums = torch.cat((x.sum(0), x.square().sum(0), x.new_full((1,), len(x))))
        if self.synced:
            sums = torch.distributed.nn.all_reduce(sums)
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        return (x - mean) / (square - mean**2 + 1e-5).sqrt()


class Normed(nn.Module):
    """A network with such a layer."""

    synced = True

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, 6), SyncedNorm(self.synced), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.first(x))))


def synced_norm_compared(rank, objective):
    model = net(Normed)
    alone = copy.deepcopy(model)
    alone.norm.synced = False
    settings = {"objective": objective, "probe_fraction": 0.5}
    expected = run_steps(GradAlign(alone, 0.05, **settings), loss_of(alone), joint_batches(2), alone)
    model = wrapped(model)
    return difference(run_steps(GradAlign(model, 0.05, **settings), loss_of(model), batches_of(rank), model), expected)


@pytest.mark.parametrize("objective", ["dot", "variance"])
def test_layers_that_communicate_by_themselves(two_ranks, objective):
    assert max(two_ranks.run(synced_norm_compared, objective)) < TOLERANCE


class Noisy(nn.Module):
    """Dropout and BatchNorm, of every rank's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.dropout(torch.tanh(self.norm(self.first(x))), 0.3))


def averaged_by_hand(model, batches, states, gradient):
    """The mean over ranks of the gradients of some micro-batches, flat; `states` are filled, or where passes start."""
    found = []
    for i, batch in enumerate(batches):
        if gradient == "record":
            states.append(torch.get_rng_state())
        else:
            torch.set_rng_state(states[i])
        own = torch.autograd.grad(loss_of(model)(batch), list(model.parameters()))
        found.append(torch.cat([g.reshape(-1) for g in own]))
    found = torch.stack(found)
    dist.all_reduce(found)
    return found / 2


def noise_of_every_rank(rank, objective):
    """split with m = 2 by its equation; every rank has its own dropout masks and its own statistics."""
    model, batches, states, radius, weight = net(Noisy), batches_of(rank), [], 1e-2, 0.05
    torch.manual_seed(100 + rank)
    alone = copy.deepcopy(model)
    g = averaged_by_hand(alone, batches, states, "record")
    end = torch.get_rng_state()
    a, term, theta = g[:2].mean(0), 0.0, nn.utils.parameters_to_vector(alone.parameters()).detach()
    for i in (2, 3):
        v = a if objective == "dot" else a - g[i]
        nn.utils.vector_to_parameters(theta + radius * v / v.norm(), alone.parameters())
        there = averaged_by_hand(alone, [batches[i]], [states[i]], "again")[0]
        nn.utils.vector_to_parameters(theta, alone.parameters())
        term = term + (there - g[i]) / radius / 2
    torch.manual_seed(100 + rank)
    model = wrapped(model, broadcast_buffers=False)
    GradAlign(model, weight, objective=objective, radius=radius, probe_fraction=0.5).backward(loss_of(model), batches)
    assert torch.equal(torch.get_rng_state(), end)
    assert int(model.module.norm.num_batches_tracked) == K
    assert not same_on_all_ranks(model.module.norm.running_mean)
    return error(gradients(model)[0], g.mean(0) - weight * term)


@pytest.mark.parametrize("objective", ["dot", "variance"])
def test_dropout_and_batch_norm_of_every_rank(two_ranks, objective):
    assert max(two_ranks.run(noise_of_every_rank, objective)) < TOLERANCE


def auxiliaries(rank):
    model = wrapped(net())
    aligner, batches = GradAlign(model, 0.05), batches_of(rank)
    loss, aux = aligner.backward(lambda b: (loss_of(model)(b), float(b[0].sum())), batches, has_aux=True)
    assert aux == [float(x.sum()) for x, _ in batches]
    return float(loss)


def test_the_loss_is_the_mean_over_ranks_and_auxiliaries_are_the_ranks_own(two_ranks):
    alone = net()
    expected = sum(float(loss_of(alone)(batch).detach()) for batch in joint_batches(2)) / K
    for loss in two_ranks.run(auxiliaries):
        assert loss == pytest.approx(expected, rel=1e-12)


def overflow(rank, place, weight):
    """A value that overflows on rank 1 alone."""
    model = wrapped(net())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    aligner = GradAlign(model, weight, scaler=scaler)
    before = [p.detach().clone() for p in model.parameters()]
    batches = batches_of(rank)
    if rank == 1:
        batches[place] = (batches[place][0] * float("inf"), batches[place][1])
    aligner.backward(loss_of(model), batches)
    finite = bool(gradients(model)[0].isfinite().all())
    scaler.step(optimizer)
    scaler.update()
    same = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    return finite, same, scaler.get_scale()


@pytest.mark.parametrize("weight", [0.0, 0.05])
@pytest.mark.parametrize("place", [0, K - 1])
def test_an_overflow_on_one_rank_makes_all_skip_the_step(two_ranks, place, weight):
    assert two_ranks.run(overflow, place, weight) == [(False, True, 2.0)] * 2


def failing_on_one_rank(rank, at):
    """An exception in the loss_fn of rank 1; a group of its own, whose collectives wait for 3 s."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=3))
    model = wrapped(net(Stateful), process_group=group)
    aligner, calls = GradAlign(model, 0.05), []
    before = {name: t.clone() for name, t in model.state_dict().items()}

    def loss_fn(batch):
        calls.append(aligner.displaced)
        if rank == 1 and len(calls) == at:
            raise KeyError("planted")
        return loss_of(model)(batch)

    start, caught = time.monotonic(), None
    try:
        aligner.backward(loss_fn, batches_of(rank))
    except (KeyError, RuntimeError) as error:
        caught = type(error)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.require_backward_grad_sync
    return caught, time.monotonic() - start


# The third call is the last anchor's pass, which is averaged; the fifth is the first displaced one, held back until the end.
@pytest.mark.parametrize("at", [3, 5])
def test_an_exception_on_one_rank_leaves_every_rank_at_theta(two_ranks, at):
    (other, seconds), (own, _) = two_ranks.run(failing_on_one_rank, at)
    assert own is KeyError
    assert issubclass(other, RuntimeError)
    assert seconds < 15


def failing_on_all_ranks(rank):
    model, alone = wrapped(net()), net()
    aligner, fails = GradAlign(model, 0.05), [True]

    def loss_fn(batch):
        loss = loss_of(model)(batch)
        if aligner.displaced and fails[0]:
            raise KeyError("planted")
        return loss

    with pytest.raises(KeyError, match="planted"):
        aligner.backward(loss_fn, batches_of(rank))
    fails.clear()
    fails.append(False)
    expected = run_steps(GradAlign(alone, 0.05), loss_of(alone), joint_batches(2), alone)
    return difference(run_steps(aligner, loss_fn, batches_of(rank), model), expected)


def test_the_aligner_can_be_used_again_after_an_exception_on_all_ranks(two_ranks):
    assert max(two_ranks.run(failing_on_all_ranks)) < TOLERANCE


class Elsewhere:
    """State that makes the second evaluation of a loss differ, on one rank."""

    def __init__(self, rank):
        self.count, self.rank = 0, rank

    def __call__(self, loss):
        self.count += 1
        return loss * (1 + self.count * (self.rank == 1))


def impure_on_one_rank(rank):
    model, spoil = wrapped(net()), Elsewhere(rank)
    with pytest.raises(RuntimeError, match="another one on another rank" if rank == 0 else "got [0-9.]+, then"):
        GradAlign(model, 0.05).backward(lambda batch: spoil(loss_of(model)(batch)), batches_of(rank))


def test_a_loss_fn_that_is_impure_on_one_rank_is_refused_on_all(two_ranks):
    two_ranks.run(impure_on_one_rank)


class Counted:
    """Counts how many times a wrapper averaged all parameters."""

    def __init__(self, model):
        self.elements, self.model, self.average = 0, model, default_hooks._allreduce_fut

    def __call__(self, group, gradients):
        self.elements += gradients.numel()
        return self.average(group, gradients)

    def of_n(self):
        """Averages of all parameters since the last call."""
        found, self.elements = self.elements, 0
        return found / sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def all_reduces(rank, options, weight, k, one_by_one):
    model = wrapped(net())
    counted = Counted(model)
    aligner = GradAlign(model, weight, **options)
    counts = []
    with averaged_by(counted, model):
        for _ in range(2):
            run_steps(aligner, loss_of(model), batches_of(rank, k), model, one_by_one=one_by_one)
            counts.append(counted.of_n())
    assert counts[0] == counts[1]
    return counts[0]


M = 2
COUNTS = [
    ({}, 0.0, lambda k: 1),
    ({"objective": "dot"}, 0.05, lambda k: 2),
    ({"objective": "norm"}, 0.05, lambda k: 2),
    ({"objective": "dot", "difference": "central"}, 0.05, lambda k: 2),
    ({"objective": "variance"}, 0.05, lambda k: M + 2),
    ({"objective": "variance", "difference": "central"}, 0.05, lambda k: M + 2),
    ({"objective": "cosine"}, 0.05, lambda k: k + 1),
    ({"estimator": "momentum"}, 0.05, lambda k: 1),
    ({"estimator": "symmetric"}, 0.05, lambda k: 3),
    ({"estimator": "prefix"}, 0.05, lambda k: k + 1),
    ({"estimator": "leave_one_out"}, 0.05, lambda k: k + 1),
    ({"estimator": LeaveOneOut(gradients="recompute")}, 0.05, lambda k: k + 2),
]


def all_counts(rank, requests):
    return [all_reduces(rank, *request) for request in requests]


def test_how_often_all_parameters_are_averaged(two_ranks):
    found = two_ranks.run(all_counts, [(options, weight, 8, False) for options, weight, _ in COUNTS])
    assert found == [[expected(8) for _, _, expected in COUNTS]] * 2


def test_accumulate_averages_as_often(two_ranks):
    requests = [({}, 0.05, 8, True), ({"objective": "variance"}, 0.05, 8, True)]
    assert two_ranks.run(all_counts, requests) == [[2, M + 2]] * 2


def refusals(rank):
    """What is refused, and what the message says."""
    batches = batches_of(rank)

    def refused(kind, match, step, **options):
        model = wrapped(net(), **options)
        with pytest.raises(kind, match=match):
            step(model)

    refused(ValueError, "got gradient_as_bucket_view=True", lambda m: GradAlign(m, 0.1), gradient_as_bucket_view=True)
    refused(
        RuntimeError,
        "give the wrapper itself",
        lambda m: GradAlign(m.module, 0.1).backward(loss_of(m), batches),
    )
    refused(
        RuntimeError,
        "expected gradients that are averaged over the ranks",
        lambda m: GradAlign(m, 0.1).backward(loss_of(m.module), batches),
    )
    refused(
        RuntimeError,
        "expected gradients that are averaged over the ranks",
        lambda m: GradAlign(m, 0.0).backward(loss_of(m.module), batches),
    )
    refused(
        ValueError,
        "expected trained parameters that are all inside",
        lambda m: GradAlign([m, nn.Linear(2, 2)], 0.1),
    )
    refused(
        ValueError,
        "which calls autograd by itself",
        lambda m: GradAlign(m, 0.1, estimator="exact").backward(loss_of(m), batches),
    )
    refused(
        ValueError,
        "which calls autograd by itself",
        lambda m: gradalign.baselines.MAML(m, 0.1).backward(loss_of(m), batches),
    )
    refused(ValueError, "which calls autograd by itself", lambda m: gradalign.tune(m, loss_of(m), batches))
    model = net(Stateful)
    model.register_buffer("extra", torch.zeros(1))
    model = wrapped(model)
    model._register_buffer_comm_hook(None, lambda *_: None)
    with pytest.raises(ValueError, match="got a hook for buffers"):
        GradAlign(model, 0.1)


def test_refusals_say_what_to_do(two_ranks):
    two_ranks.run(refusals)


def power_sgd(model):
    model.register_comm_hook(powerSGD_hook.PowerSGDState(None, 1), powerSGD_hook.powerSGD_hook)


def averaging(_, bucket):
    return default_hooks.allreduce_hook(None, bucket)


COMM_HOOKS = {
    "powerSGD_hook": power_sgd,
    "fp16_compress_hook": lambda model: model.register_comm_hook(None, default_hooks.fp16_compress_hook),
    "averaging": lambda model: model.register_comm_hook(None, averaging),
    "_hook_then_optimizer": lambda model: model._register_fused_optim(torch.optim.SGD, lr=0.1),
    "BuiltinCommHookType.FP16_COMPRESS": lambda model: model._register_builtin_comm_hook(
        dist.BuiltinCommHookType.FP16_COMPRESS
    ),
}
EXACT_HOOKS = [
    lambda model: model.register_comm_hook(None, default_hooks.allreduce_hook),
    lambda model: model._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE),
]


def hooks_refused(rank):
    """A communication hook is refused whenever it is registered, with and without the term, and changes nothing."""
    batches = batches_of(rank)
    for name, register in COMM_HOOKS.items():
        message = f"got the communication hook {name}.*register none"
        model = wrapped(net())
        register(model)
        with pytest.raises(ValueError, match=message):
            GradAlign(model, 0.0)
        model = wrapped(net())
        before = [p.detach().clone() for p in model.parameters()]
        aligner = GradAlign(model, 0.05)
        aligner.backward(loss_of(model), batches)
        model.zero_grad()
        register(model)
        with pytest.raises(ValueError, match=message):
            aligner.backward(loss_of(model), batches)
        assert all(p.grad is None for p in model.parameters())
        assert all(map(torch.equal, model.parameters(), before))


def test_communication_hooks_are_refused(two_ranks):
    two_ranks.run(hooks_refused)


def exact_hooks(rank):
    """The error of gradients with a hook that averages as the wrapper does, against those without one."""
    errors = []
    for register in EXACT_HOOKS:
        model, hooked = wrapped(net()), wrapped(net())
        register(hooked)
        found, expected = (run_steps(GradAlign(m, 0.05), loss_of(m), batches_of(rank), m, 2) for m in (hooked, model))
        errors.append(difference(found, expected))
    return errors


def test_communication_hooks_that_only_average_are_accepted(two_ranks):
    assert max(map(max, two_ranks.run(exact_hooks))) < TOLERANCE


def joined(rank):
    model = wrapped(net())
    aligner = GradAlign(model, 0.1)
    with (
        pytest.raises(RuntimeError, match="inside Join"),
        torch.distributed.algorithms.Join([model], throw_on_early_termination=True),
    ):
        aligner.backward(loss_of(model), batches_of(rank))


def test_uneven_inputs_are_refused(two_ranks):
    two_ranks.run(joined)


def not_distributed(rank):
    """A model of this process alone, while a group is up: no collective, whatever the other ranks do."""
    if rank == 1:
        return
    model = net()
    calls = []
    original, dist.all_reduce = dist.all_reduce, lambda *args, **kwargs: calls.append(args)
    try:
        GradAlign(model, 0.05).backward(loss_of(model), batches_of(rank))
    finally:
        dist.all_reduce = original
    assert not calls


def test_a_model_of_one_process_communicates_with_nobody(two_ranks):
    two_ranks.run(not_distributed)


def hooked_gradients(rank):
    """A hook on a gradient that is not linear sees gradients at the same ratio everywhere."""
    errors = []
    for objective in ("dot", "variance"):
        model = net()
        for p in model.parameters():
            if p.requires_grad:
                p.register_hook(lambda g: 2 * g)
        alone = net()
        for p in alone.parameters():
            if p.requires_grad:
                p.register_hook(lambda g: 2 * g)
        expected = run_steps(GradAlign(alone, 0.05, objective=objective), loss_of(alone), joint_batches(2), alone)
        model = wrapped(model)
        aligner = GradAlign(model, 0.05, objective=objective)
        errors.append(difference(run_steps(aligner, loss_of(model), batches_of(rank), model), expected))
    return errors


def test_parameters_with_hooks(two_ranks):
    assert max(map(max, two_ranks.run(hooked_gradients))) < TOLERANCE


def test_other_wrappers_are_refused_by_name():
    class DeepSpeedEngine(nn.Module):
        pass

    class PipelineEngine(DeepSpeedEngine):
        pass

    with pytest.raises(TypeError, match="got DeepSpeedEngine, which reduces and partitions gradients by itself"):
        GradAlign(PipelineEngine(), 0.1)
    partitioned = Net()
    partitioned.scale.ds_id = 3
    with pytest.raises(TypeError, match="got those of DeepSpeed's ZeRO-3"):
        GradAlign(partitioned, 0.1)


class TwoWays(nn.Module):
    """One way for all micro-batches, and one for some."""

    def __init__(self):
        super().__init__()
        self.text, self.image = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x, with_image):
        out = torch.tanh(self.text(x))
        return out + self.image(x).sin() if with_image else out


def reached_by_some(rank, weight, options, patterns):
    """Errors against one process in steps whose micro-batches reach both wrappers or one, the same on all ranks."""
    model = net(TwoWays)
    alone = copy.deepcopy(model)
    model.text, model.image = wrapped(model.text), wrapped(model.image)
    several, one = GradAlign(model, weight, **options), GradAlign(alone, weight, **options)

    def loss_fn(of):
        return lambda batch: F.cross_entropy(of(batch[0], batch[2]), batch[1])

    found = []
    for pattern in patterns:
        own = [(*batch, flag) for batch, flag in zip(batches_of(rank), pattern, strict=True)]
        joint = [(*batch, flag) for batch, flag in zip(joint_batches(2), pattern, strict=True)]
        (gradient, *_), _ = run_steps(several, loss_fn(model), own, model)
        (expected, *_), _ = run_steps(one, loss_fn(alone), joint, alone)
        found.append((error(gradient, expected), same_on_all_ranks(gradient)))
    return found


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("weight", "options"),
    [
        (0.0, {}),
        (0.05, {"probe_fraction": 0.5}),
        (0.05, {"probe_fraction": 0.5, "objective": "variance"}),
        (0.05, {"estimator": "leave_one_out", "objective": "variance"}),
    ],
)
def test_a_wrapper_that_the_last_micro_batch_does_not_reach_is_averaged(two_ranks, weight, options, first):
    some = (True, False, True, False)
    patterns = (some, some) if first else ((True,) * 4, some)
    for found in two_ranks.run(reached_by_some, weight, options, patterns):
        assert max(error for error, _ in found) < TOLERANCE
        assert all(same for _, same in found)


def unfrozen_after_wrapping(rank, steps_before):
    model = wrapped(net())
    aligner = GradAlign(model, 0.05, objective="variance")
    for seed in range(steps_before):
        aligner.backward(loss_of(model), batches_of(rank, seed=seed))
        model.zero_grad()
    model.module.frozen.requires_grad_(True)
    with pytest.raises(RuntimeError, match="one of those that the wrapper was made with"):
        aligner.backward(loss_of(model), batches_of(rank))
    assert all(p.grad is None for p in model.parameters())
    model.module.frozen.requires_grad_(False)
    aligner.backward(loss_of(model), batches_of(rank))
    return same_on_all_ranks(gradients(model)[0])


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_a_parameter_that_is_trained_only_since_the_wrapping_is_refused(two_ranks, steps_before):
    assert all(two_ranks.run(unfrozen_after_wrapping, steps_before))


def labels_on_one_rank(rank):
    model = wrapped(net())
    aligner = GradAlign(model, 0.05, objective="variance", estimator="leave_one_out")
    for step in range(3):
        labels = list("aabb") if step < 2 or rank == 0 else None
        if step < 2:
            aligner.backward(loss_of(model), batches_of(rank), sources=labels)
        else:
            with pytest.raises(ValueError, match="sources: expected the same on all ranks"):
                aligner.backward(loss_of(model), batches_of(rank), sources=labels)
        model.zero_grad()


def test_labels_on_one_rank_alone_are_an_error_on_both(two_ranks):
    two_ranks.run(labels_on_one_rank)
