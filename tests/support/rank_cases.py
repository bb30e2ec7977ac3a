"""A small model that several processes train, and what one process finds with the micro-batches of all of them."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F  # noqa: N812

from gradalign import GradAlign
from gradalign.estimators import LeaveOneOut, Prefix, Split

K, ROWS = 4, 3
RADIUS = 1e-2

STATISTICS = ("loss", "grad_norm", "dot", "cosine", "term_norm", "noise_scale", "task_cosines", "displacement_cosine")

ESTIMATORS = {
    "split": ("split", ("dot", "norm", "variance", "cosine")),
    "split m=2": (Split(probe_fraction=0.5), ("dot", "norm", "variance", "cosine")),
    "rotated": (Split(probes="rotate"), ("dot", "norm", "variance", "cosine")),
    "prefix": (Prefix(), ("dot", "norm", "variance", "cosine")),
    "prefix block=2": (Prefix(block=2), ("dot", "norm")),
    "leave_one_out": (LeaveOneOut(), ("dot", "norm", "variance", "cosine")),
    "leave_one_out host": (LeaveOneOut(gradients="host"), ("dot", "variance", "cosine")),
    "leave_one_out recompute": (LeaveOneOut(gradients="recompute"), ("dot", "variance", "cosine")),
    "symmetric": ("symmetric", ("dot", "norm")),
    "momentum": ("momentum", ("dot", "norm")),
}


class Net(nn.Module):
    """Tied and frozen parameters, and one with fewer rows than there are ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(5, 6)
        self.middle = nn.Linear(6, 6, bias=False)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.middle.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.middle(torch.tanh(self.encode(x))))
        return self.head(self.scale * torch.tanh(self.frozen(torch.tanh(self.tied(x)))))


def batches_of(rank, k=K, rows=ROWS, seed=1):
    """The micro-batches of one rank."""
    generator = torch.Generator().manual_seed(seed * 1000 + rank)
    return [
        (
            torch.randn(rows, 5, generator=generator, dtype=torch.float64),
            torch.randint(3, (rows,), generator=generator),
        )
        for _ in range(k)
    ]


def joint_batches(num, k=K, rows=ROWS, seed=1):
    """The micro-batches of all ranks, those of the same place put together."""
    several = [batches_of(rank, k, rows, seed) for rank in range(num)]
    return [tuple(torch.cat(parts) for parts in zip(*same, strict=True)) for same in zip(*several, strict=True)]


def loss_of(model):
    """A loss_fn."""
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def net(kind=Net, seed=0):
    """The model, the same on every rank."""
    torch.manual_seed(seed)
    return kind().double()


def sharded(model, mesh=None, **options):
    """The model in two groups: its head, and everything else in the root."""
    fully_shard(model.head, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def full(t):
    """All of a tensor."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def gradients(model):
    """All gradients in one vector, and which parameters have one."""
    grads = [None if p.grad is None else full(p.grad) for p in model.parameters() if p.requires_grad]
    return torch.cat([g.reshape(-1) for g in grads if g is not None]), [g is None for g in grads]


def error(found, expected):
    """Relative error of a vector."""
    return float((found - expected).norm() / expected.norm())


def run_steps(aligner, loss_fn, batches, model, steps=1, one_by_one=False, **kwargs):
    """Gradients and statistics of the last of some steps."""
    for _ in range(steps):
        model.zero_grad()
        if one_by_one:
            with aligner.accumulate(len(batches), **kwargs) as step:
                for batch in batches:
                    step.backward(lambda batch=batch: loss_fn(batch))
        else:
            aligner.backward(loss_fn, batches, **kwargs)
    return gradients(model), aligner.stats.as_dict()


def difference(found, expected):
    """The largest relative error of gradients and statistics."""
    (grads, missing), stats = found
    (expected_grads, expected_missing), expected_stats = expected
    assert missing == expected_missing
    errors = [error(grads, expected_grads)]
    for name in STATISTICS:
        assert (stats[name] is None) == (expected_stats[name] is None), name
        if stats[name] is not None:
            errors.append(error(torch.tensor(stats[name]).double(), torch.tensor(expected_stats[name]).double()))
    return max(errors)


def same_on_all_ranks(*vectors, group=None):
    """Whether vectors have the same bits on all ranks."""
    own = torch.cat([full(v).detach().reshape(-1) for v in vectors])
    largest, smallest = own.clone(), own.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    dist.all_reduce(smallest, dist.ReduceOp.MIN, group=group)
    return torch.equal(largest, smallest)


# (normalize, difference, telemetry)
FORMS = (
    ("none", "central", False),
    ("direction", "forward", False),
    ("direction", "central", True),
    ("gradient", "forward", True),
)


def cases(estimator, forms=FORMS):
    """Options of GradAlign for all objectives of an estimator."""
    made, objectives = ESTIMATORS[estimator]
    for objective, (normalize, difference, telemetry) in itertools.product(objectives, forms):
        if estimator != "momentum" or (normalize == "direction"):
            yield {
                "estimator": made,
                "objective": objective,
                "normalize": normalize,
                "difference": difference,
                "telemetry": telemetry,
                "radius": RADIUS,
            }


def compare_with_one_process(
    rank, num, distribute, options, *, kind=Net, steps=None, one_by_one=False, batches=None, **kwargs
):
    """The error of a step on several ranks against one process that has the micro-batches of all.

    `batches` are those of every rank, where all have the same.
    """
    steps = steps or (2 if options["estimator"] == "momentum" else 1)
    own, joint = (batches_of(rank), joint_batches(num)) if batches is None else (batches, batches)
    model = net(kind)
    alone = copy.deepcopy(model)
    expected = run_steps(GradAlign(alone, 0.05, **options), loss_of(alone), joint, alone, steps, one_by_one, **kwargs)
    model = distribute(model)
    aligner = GradAlign(model, 0.05, **options)
    before = [full(p).clone() for p in model.parameters()]
    found = run_steps(aligner, loss_of(model), own, model, steps, one_by_one, **kwargs)
    assert all(torch.equal(full(p), b) for p, b in zip(model.parameters(), before, strict=True))
    assert same_on_all_ranks(found[0][0])
    assert same_on_all_ranks(torch.tensor([v for v in found[1].values() if isinstance(v, float)]))
    return difference(found, expected)
