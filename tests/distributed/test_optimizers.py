"""`gradalign.optim` on DTensors, checkpoints that another number of ranks goes on from, and runs that are killed."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from support.rank_cases import (
    batches_of,
    error,
    full,
    joint_batches,
    loss_of,
    net,
    same_on_all_ranks,
    sharded,
)
from support.ranks import Group, RankError
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gradalign import GradAlign
from gradalign.optim import LAMB, SGD, AdamW

OPTIMIZERS = {
    "adamw": lambda params, **options: AdamW(params, lr=0.01, max_grad_norm=0.1, **options),
    "sgd": lambda params, **options: SGD(params, lr=0.1, momentum=0.9, max_grad_norm=0.1, clear="zero", **options),
    "lamb": lambda params, **options: LAMB(trusted(params), lr=0.1, weight_decay=0.3, max_grad_norm=0.1, **options),
}


def trusted(params):
    """Two groups: the biases have no ratio of norms."""
    params = list(params)
    return [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim < 2], "trust": False},
    ]


def flat(model):
    return torch.cat([full(p).detach().reshape(-1) for p in model.parameters()])


def trained(model, optimizer, aligner, batches, steps=3, first=0, dtype=torch.float64):
    for step in range(first, first + steps):
        aligner.backward(loss_of(model), [(x.to(dtype), y) for x, y in batches(step)])
        optimizer.step()
        if optimizer.clear is None:
            optimizer.zero_grad()
    return flat(model)


def compared(rank, name, num, hybrid):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")) if hybrid else None
    found = []
    for distributed in (False, True):
        model = sharded(net(), mesh) if distributed else net()
        optimizer = OPTIMIZERS[name](model.parameters())
        aligner = GradAlign(model, 0.05, objective="variance", zeroed_grads=optimizer.clear == "zero")
        batches = (
            (lambda s: batches_of(rank, seed=s + 1)) if distributed else (lambda s: joint_batches(num, seed=s + 1))
        )
        found.append((trained(model, optimizer, aligner, batches), float(optimizer.grad_norm)))
    (expected, norm), (own, own_norm) = found
    assert own_norm == pytest.approx(norm, rel=1e-10)
    return error(own, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fused_step_on_shards_is_that_of_one_process(two_ranks, name):
    assert max(two_ranks.run(compared, name, 2, False)) < 1e-10


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_a_fused_step_on_a_hybrid_mesh_with_empty_shards(four_ranks, name):
    assert max(four_ranks.run(compared, name, 4, True)) < 1e-10


def masters(rank):
    """bfloat16 parameters with float32 masters, which also serve as the aligner's backup; one rank overflows in a step."""
    model = sharded(net().bfloat16())
    optimizer = AdamW(model.parameters(), lr=0.01, master_weights=True)
    aligner = GradAlign(model, 0.05, optimizer=optimizer)
    before = flat(model)
    moved = trained(model, optimizer, aligner, lambda s: batches_of(rank, seed=s + 1), 2, dtype=torch.bfloat16)
    for p in model.parameters():
        if p.requires_grad:
            master = optimizer.master(p)
            assert master.dtype == torch.float32
            assert torch.equal(full(master).bfloat16(), full(p))
            assert torch.equal(master.to_local().bfloat16(), p.to_local())
    bad = [(x * (float("inf") if rank == 1 else 1), y) for x, y in batches_of(rank)]
    after = trained(model, optimizer, aligner, lambda _: bad, 1, dtype=torch.bfloat16)
    return torch.equal(before, moved), torch.equal(moved, after)


def test_masters_and_a_step_that_is_skipped_on_all_ranks(two_ranks):
    assert two_ranks.run(masters) == [(False, True)] * 2


def layouts():
    """Parameters of every layout there is, as (start, place it): cut along a dimension or two, uneven, of every rank."""
    if dist.get_world_size() == 2:
        mesh = init_device_mesh("cpu", (2,))
        placements = {"rows": [Shard(0)], "columns": [Shard(1)], "uneven": [Shard(0)], "whole": [Replicate()]}
    else:
        mesh = init_device_mesh("cpu", (2, 2))
        placements = {
            "rows": [Replicate(), Shard(0)],
            "columns": [Shard(0), Shard(1)],
            "uneven": [Shard(0), Replicate()],
            "whole": [Replicate(), Replicate()],
        }
    return mesh, placements


def start_of(name):
    shape = (3, 700) if name == "uneven" else (64, 48)
    generator = torch.Generator().manual_seed(len(name))
    return torch.rand(shape, generator=generator).add_(1).bfloat16()


def parameters(distributed):
    """name -> parameter; and what makes a gradient of one."""
    mesh, placements = layouts()

    def placed(t, name):
        return distribute_tensor(t, mesh, placements[name], src_data_rank=None) if distributed else t

    return {name: nn.Parameter(placed(start_of(name), name)) for name in placements}, placed


def stepped(optimizer, params, placed, steps, first=0):
    """Some steps with the same gradients, wherever they are."""
    for step in range(first, first + steps):
        for name, p in params.items():
            generator = torch.Generator().manual_seed(100 * step + len(name))
            p.grad = placed(torch.randn(p.shape, generator=generator).bfloat16(), name)
        optimizer.step()


ROUNDED = {
    "adamw": lambda params, **options: AdamW(params, lr=1e-3, **options),
    "sgd": lambda params, **options: SGD(params, lr=1e-3, momentum=0.9, **options),
    "lamb": lambda params, **options: LAMB(params, lr=1e-3, **options),
}


def masters_compared(rank, name):
    """The largest difference of float32 masters from one process's after some steps with the same gradients."""
    found = []
    for distributed in (False, True):
        params, placed = parameters(distributed)
        optimizer = ROUNDED[name](params.values(), master_weights=True, max_grad_norm=10.0)
        stepped(optimizer, params, placed, 3)
        assert all(torch.equal(full(optimizer.master(p)).bfloat16(), full(p)) for p in params.values())
        found.append([full(optimizer.master(p)) for p in params.values()])
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ROUNDED)
def test_masters_are_those_of_one_process(two_ranks, four_ranks, name):
    # Clip coefficient and ratio of norms are of sums in another order: a rounding of float32 each step, at values below 2.
    for ranks in (two_ranks, four_ranks):
        assert max(ranks.run(masters_compared, name)) < 1e-6


def rounded(rank, name):
    """Stochastic rounding of one step, against the unrounded values of one process."""
    exact, placed = parameters(False)
    optimizer = ROUNDED[name](exact.values(), master_weights=True)
    stepped(optimizer, exact, placed, 1)
    masters = {key: optimizer.master(p) for key, p in exact.items()}
    params, placed = parameters(True)
    stepped(ROUNDED[name](params.values(), stochastic_rounding=True), params, placed, 1)
    for key, p in params.items():
        assert same_on_all_ranks(full(p))
        ulp = torch.ldexp(torch.ones(p.shape), torch.frexp(masters[key]).exponent - 8)
        error = (full(p).float() - masters[key]) / ulp
        assert float(error.abs().max()) < 1 + 1e-3  # one of the two neighbours; LAMB's norms are sums in another order
        # Of values in between, the part that goes up has a standard error of at most 0.5 / sqrt(their number) ulp.
        assert abs(float(error.mean())) < 4 * 0.5 / error.numel() ** 0.5


@pytest.mark.parametrize("name", ROUNDED)
def test_stochastic_rounding_on_shards_is_without_bias_and_the_same_on_replicas(two_ranks, four_ranks, name):
    for ranks in (two_ranks, four_ranks):
        ranks.run(rounded, name)


def drawn(rank):
    """Which elements go up where all have the same value: by layout, in the shards of every rank."""
    mesh, placements = layouts()
    params = {}
    for name, placement in placements.items():
        if name != "uneven":
            params[name] = nn.Parameter(distribute_tensor(torch.ones(64, 64).bfloat16(), mesh, placement))
    optimizer = SGD(params.values(), lr=2.0**-9, stochastic_rounding=True)
    for p in params.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return {name: (p.to_local() != 1).flatten()[:1024].tolist() for name, p in params.items()}


def test_every_shard_and_every_parameter_draws_its_own_random_numbers(two_ranks, four_ranks):
    first, second = two_ranks.run(drawn)
    assert first["whole"] == second["whole"]
    every = [first["whole"], *(found[name] for found in (first, second) for name in ("rows", "columns"))]
    a, b, c, d = four_ranks.run(drawn)
    assert a["whole"] == b["whole"] == c["whole"] == d["whole"]
    assert (a["rows"], b["rows"]) == (c["rows"], d["rows"])  # replicas
    several = [a["whole"], a["rows"], b["rows"], *(found["columns"] for found in (a, b, c, d))]
    for draws in (every, several):
        for i, x in enumerate(draws):
            assert 0.2 < sum(x) / len(x) < 0.8
            for y in draws[:i]:
                assert 0.3 < sum(p == q for p, q in zip(x, y, strict=True)) / len(x) < 0.7


class Layers(nn.Module):
    """Two layers in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x.bfloat16())))


def rounded_and_resumed(rank, name):
    """A run that goes on from `get_state_dict`, and one that was never interrupted."""
    found = []
    for interrupted in (False, True):
        model = sharded(net(Layers).bfloat16())
        optimizer = ROUNDED[name](model.parameters(), stochastic_rounding=True, rounding_seed=7)
        for step in range(4):
            if interrupted and step == 2:
                state = copy.deepcopy(get_state_dict(model, optimizer))
                model = sharded(net(Layers, seed=1).bfloat16())
                optimizer = ROUNDED[name](model.parameters(), stochastic_rounding=True)
                set_state_dict(model, optimizer, model_state_dict=state[0], optim_state_dict=state[1])
            for batch in batches_of(rank, seed=step + 1):
                loss_of(model)(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(flat(model))
    return torch.equal(*found)


@pytest.mark.parametrize("name", ROUNDED)
def test_stochastic_rounding_goes_on_bit_for_bit(two_ranks, name):
    assert two_ranks.run(rounded_and_resumed, name) == [True, True]


def state_of(model, optimizer, aligner):
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer, "aligner": aligner.state_dict()}


def run(rank, folder, until, killed_in=None):
    """Steps up to `until`, a checkpoint after each, gone on from the last one; rank 1 is killed in the middle of a step."""
    model = sharded(net())
    optimizer = AdamW(model.parameters(), lr=0.01)
    aligner = GradAlign(model, 0.05)
    saved = sorted(folder.glob("*/.metadata"))
    if saved:
        state = state_of(model, optimizer, aligner)
        dcp.load(state, checkpoint_id=saved[-1].parent)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        aligner.load_state_dict(state["aligner"])
    loaded = aligner.num_steps, flat(model)

    def loss_fn(batch):
        if aligner.displaced and aligner.num_steps == killed_in and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_of(model)(batch)

    for step in range(aligner.num_steps, until):
        aligner.backward(loss_fn, batches_of(rank, seed=step + 1))
        optimizer.step()
        optimizer.zero_grad()
        dcp.save(state_of(model, optimizer, aligner), checkpoint_id=folder / str(step + 1))
    return (*loaded, flat(model))


def test_a_run_that_is_killed_in_a_step_goes_on_bit_for_bit(tmp_path, two_ranks, four_ranks):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = two_ranks.run(run, whole, 4)[0][2]
    after_two = two_ranks.run(run, tmp_path / "short", 0)  # nothing to go on from
    assert after_two[0][0] == 0
    group = Group(2)
    try:
        with pytest.raises(RankError, match="the process has ended"):
            group.run(run, parts, 4, 2, seconds=20)
        assert sorted(path.name for path in parts.iterdir()) == ["1", "2"]
        for num, processes in ((4, four_ranks), (2, group)):
            steps, theta, _ = processes.run(run, parts, 2)[0]
            assert steps == 2, num
        steps, again, found = group.run(run, parts, 4)[0]
        assert steps == 2
        assert torch.equal(theta, again)
        assert torch.equal(found, expected)
    finally:
        group.stop()


def with_a_mean(rank, folder, save):
    """`momentum` keeps a mean of past gradients, which a fresh aligner finds in a checkpoint: the mean, and a step from it."""
    model = sharded(net())
    optimizer = AdamW(model.parameters(), lr=0.01)
    aligner = GradAlign(model, 0.05, estimator="momentum")
    if save:
        trained(model, optimizer, aligner, lambda step: batches_of(rank, seed=step + 1), 2)
        dcp.save(state_of(model, optimizer, aligner), checkpoint_id=folder)
    else:
        state = state_of(model, optimizer, aligner)
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        aligner.load_state_dict(state["aligner"])
    mean = torch.cat([full(m).reshape(-1) for m in aligner.state_dict()["mean"] if m is not None])
    return mean, trained(model, optimizer, aligner, lambda step: batches_of(rank, seed=step + 1), 1, first=2)


def test_the_mean_of_momentum_is_loaded_into_a_fresh_aligner_also_resharded(tmp_path, two_ranks, four_ranks):
    (mean, theta), _ = two_ranks.run(with_a_mean, tmp_path, True)
    assert float(mean.norm()) > 0
    alone = Group(1)
    try:
        for ranks in (alone, two_ranks, four_ranks):
            loaded, further = ranks.run(with_a_mean, tmp_path, False)[0]
            assert torch.equal(loaded, mean)
            assert torch.equal(further, theta) == (ranks is two_ranks)  # others have other micro-batches
    finally:
        alone.stop()
