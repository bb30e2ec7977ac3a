"""Large-batch training with `fully_shard` (FSDP2), aligned.

    torchrun --nproc_per_node 2 examples/large_batch_fsdp2.py --steps 20 --checkpoint run --save-every 5
    torchrun --nproc_per_node 4 examples/large_batch_fsdp2.py --steps 40 --checkpoint run   # goes on at step 20, resharded

Every pass gathers and reduces as in plain accumulation; aligner and optimizer work on the shards. Checkpoints are those of
`torch.distributed.checkpoint`: another number of ranks can go on from them. Rank 0 prints progress and metrics as JSON lines.
Random numbers and data are a function of rank and step: a run that is killed, in the middle of a step or of a save, goes on
from the last checkpoint bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import gradalign


def arguments() -> argparse.Namespace:
    """What the run is told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="in all, those of a checkpoint included")
    parser.add_argument("--micro-batches", type=int, default=8, help="of every rank and step")
    parser.add_argument("--rows", type=int, default=16, help="of every micro-batch")
    parser.add_argument("--weight", type=float, default=0.003)
    parser.add_argument("--objective", default="variance", choices=("dot", "norm", "variance", "cosine"))
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "lamb"))
    parser.add_argument("--checkpoint", type=Path, help="a folder for the last state, gone on from where there is one")
    parser.add_argument("--save-every", type=int, help="also save every so many steps")
    return parser.parse_args()


def batch_of(step: int, rank: int, rows: int) -> tuple[Tensor, Tensor]:
    """The rows of one rank in one step; the targets are noisy."""
    g = torch.Generator().manual_seed(100_000 * rank + step)
    x = torch.randn(rows, 20, generator=g)
    return x, x[:, :5].sum(-1, keepdim=True).tanh() + 0.5 * torch.randn(rows, 1, generator=g)


def due(done: int, every: int | None, last: int) -> bool:
    """Whether to save after so many steps."""
    return done == last or (every is not None and done % every == 0)


def complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the last one last; `.metadata` is what a save writes last."""
    return sorted(path.parent for path in folder.glob("step-*/.metadata"))


def main() -> None:
    """Train, report and save."""
    given = arguments()
    on_gpu = torch.cuda.is_available()
    if "LOCAL_RANK" not in os.environ:
        raise SystemExit(
            "expected to be started by torchrun: torchrun --nproc_per_node 2 examples/large_batch_fsdp2.py"
        )
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, local = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1)).to(device)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    kind = gradalign.optim.AdamW if given.optimizer == "adamw" else gradalign.optim.LAMB
    optimizer = kind(model.parameters(), lr=3e-3)
    aligner = gradalign.GradAlign(model, given.weight, objective=given.objective)

    def loss_fn(micro_batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = micro_batch
        return nn.functional.mse_loss(model(x), y)

    def state() -> dict[str, Any]:
        of_model, of_optimizer = get_state_dict(model, optimizer)
        return {"model": of_model, "optimizer": of_optimizer, "aligner": aligner.state_dict()}

    def save(done: int) -> None:
        path = given.checkpoint / f"step-{done:08d}"
        dcp.save(state(), checkpoint_id=path)
        if rank == 0:  # not before all ranks have written theirs: a run that is killed earlier leaves the old one
            for old in set(given.checkpoint.glob("step-*")) - {path}:
                shutil.rmtree(old)

    found = [] if given.checkpoint is None else complete(given.checkpoint)
    if found:
        saved = state()
        dcp.load(saved, checkpoint_id=found[-1])
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
        aligner.load_state_dict(saved["aligner"])
    for step in range(aligner.num_steps, given.steps):
        torch.manual_seed(100_000 * rank + step)  # dropout masks of this rank and step, also in a resumed run
        x, y = batch_of(step, rank, given.micro_batches * given.rows)
        micro_batches = gradalign.chunk((x.to(device), y.to(device)), given.micro_batches)
        loss = aligner.backward(loss_fn, micro_batches)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            stats = aligner.stats
            assert stats is not None
            print(json.dumps({"step": step, "loss": float(loss), "grad_norm": float(stats.grad_norm or 0)}), flush=True)
        if given.checkpoint is not None and due(step + 1, given.save_every, given.steps):
            save(step + 1)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
