"""`gradalign.optim` on DTensors, checkpoints that another number of ranks goes on from, and runs that are killed."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.rank_cases import batches_of, error, full, joint_batches, loss_of, net, sharded
from support.ranks import Group, RankError
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh

from gradalign import GradAlign
from gradalign.optim import LAMB, SGD, AdamW

OPTIMIZERS = {
    "adamw": lambda params, **options: AdamW(params, lr=0.01, max_grad_norm=0.1, **options),
    "sgd": lambda params, **options: SGD(params, lr=0.1, momentum=0.9, max_grad_norm=0.1, clear="zero", **options),
}


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


def test_a_fused_step_on_a_hybrid_mesh(four_ranks):
    assert max(four_ranks.run(compared, "adamw", 4, True)) < 1e-10


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


def refusals(rank):
    model = sharded(net())
    with pytest.raises(TypeError, match="got a DTensor with LAMB, which needs norms of whole parameters"):
        LAMB(model.parameters())
    with pytest.raises(TypeError, match="got a DTensor with stochastic_rounding"):
        AdamW(model.parameters(), stochastic_rounding=True)


def test_refusals_say_what_to_do(two_ranks):
    two_ranks.run(refusals)


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
