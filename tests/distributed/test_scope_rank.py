"""scope="rank": R ranks with k micro-batches each are one process with R k of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from support.rank_cases import RADIUS, batches_of, error, gradients, loss_of, net, same_on_all_ranks
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gradalign import GradAlign
from gradalign.estimators import LeaveOneOut, Split

TOLERANCE = 1e-10
K = 4


def corresponding(num, k, probes):
    """The micro-batches of all ranks as one process has them: those of the ranks in turn, probes last."""
    several = [batches_of(rank, k) for rank in range(num)]
    return [b for own in several for b in own[: k - probes]] + [b for own in several for b in own[k - probes :]]


class Averages:
    """Counts how often all parameters are averaged, by the wrapper or by itself."""

    def __init__(self, model):
        self.model, self.elements, self.original = model, 0, dist.all_reduce
        model.register_comm_hook(None, allreduce_hook)  # which calls dist.all_reduce

    def __enter__(self):
        def counting(t, *args, **kwargs):
            self.elements += t.numel()
            return self.original(t, *args, **kwargs)

        dist.all_reduce = counting
        return self

    def __exit__(self, *_):
        dist.all_reduce = self.original

    def of_n(self):
        """How many, whatever a few numbers add to it."""
        return self.elements // sum(p.numel() for p in self.model.parameters() if p.requires_grad)


def compared(rank, options, k, probes):
    alone = net()
    model = DistributedDataParallel(copy.deepcopy(alone))
    GradAlign(alone, 0.05, **options).backward(loss_of(alone), corresponding(2, k, probes))
    aligner = GradAlign(model, 0.05, scope="rank", **options)
    before = [p.detach().clone() for p in model.parameters()]
    counts = []
    for _ in range(2):
        model.zero_grad()
        with Averages(model) as averages:
            aligner.backward(loss_of(model), batches_of(rank, k))
        counts.append(averages.of_n())
        model = DistributedDataParallel(model.module)
        aligner = GradAlign(model, 0.05, scope="rank", check_replay=False, **options)
    assert all(torch.equal(p, b) for p, b in zip(model.module.parameters(), before, strict=True))
    (found, _), (expected, _) = gradients(model), gradients(alone)
    assert same_on_all_ranks(found)
    return error(found, expected), counts[0]


CASES = [
    (Split(probe_fraction=0.5), K, 2, {"dot": 2, "norm": 2, "variance": 2, "cosine": 2}),
    (Split(), K, 1, {"variance": 2, "cosine": 2}),
    (LeaveOneOut(), K, 0, {"dot": 2, "norm": 2, "variance": 2, "cosine": 2}),
    (LeaveOneOut(), 1, 0, {"dot": 2, "variance": 2, "cosine": 2}),
    (LeaveOneOut(gradients="recompute"), K, 0, {"variance": 2}),
]


def all_compared(rank):
    found = []
    for estimator, k, probes, expected in CASES:
        for objective in expected:
            for normalize, difference in (("direction", "forward"), ("none", "central")):
                options = {
                    "estimator": estimator,
                    "objective": objective,
                    "normalize": normalize,
                    "difference": difference,
                    "radius": RADIUS,
                }
                found.append((*compared(rank, options, k, probes), expected[objective]))
    return found


def test_it_equals_one_process_with_all_micro_batches(two_ranks):
    for found in two_ranks.run(all_compared):
        assert len(found) == 28
        assert max(error for error, _, _ in found) < TOLERANCE
        assert [count for _, count, _ in found] == [expected for _, _, expected in found]


def refusals(rank):
    def refused(match, **options):
        with pytest.raises(ValueError, match=match):
            GradAlign(DistributedDataParallel(net()), 0.05, scope="rank", **options)

    for name in ("prefix", "symmetric", "momentum", "exact"):
        refused('expected estimator "split" or "leave_one_out"', estimator=name)
    refused("expected no telemetry", telemetry=True)
    refused("expected no telemetry", normalize="gradient")
    model = DistributedDataParallel(net())
    with pytest.raises(ValueError, match="tasks: expected none"):
        GradAlign(model, 0.05, scope="rank").backward(loss_of(model), batches_of(rank), tasks=["a"] * 4)
    with pytest.raises(ValueError, match="expected at least 2"):
        GradAlign(model, 0.05, scope="rank").backward(loss_of(model), batches_of(rank, 1))
    with pytest.raises(ValueError, match="of which all ranks gather the same"):
        GradAlign(fully_shard(net()), 0.05, scope="rank")
    model = DistributedDataParallel(net(), find_unused_parameters=True)
    with pytest.raises(ValueError, match="got find_unused_parameters"):
        GradAlign(model, 0.05, scope="rank")


def test_refusals_say_what_to_do(two_ranks):
    two_ranks.run(refusals)


def test_one_process_has_no_ranks_to_tell_apart():
    found = []
    for scope in ("all", "rank"):
        model = net()
        GradAlign(model, 0.05, objective="variance", scope=scope).backward(loss_of(model), batches_of(0))
        found.append(gradients(model)[0])
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="scope: expected one of"):
        GradAlign(net(), 0.05, scope="world")
