"""Large-batch training under DistributedDataParallel, aligned.

    torchrun --nproc_per_node 2 examples/large_batch_ddp.py --steps 20 --checkpoint run.pt --save-every 5
    torchrun --nproc_per_node 2 examples/large_batch_ddp.py --steps 40 --checkpoint run.pt   # goes on at step 20

Micro-batch i of a step is what all ranks have as their i-th. Beside the plain loop there are the two lines that name `aligner`,
and its state in the checkpoint. Progress and metrics come from rank 0, as JSON lines. Random numbers and data are a function of
rank and step: a run that is killed, in the middle of a step or of a save, goes on from the last checkpoint bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gradalign


def arguments() -> argparse.Namespace:
    """What the run is told."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="in all, those of a checkpoint included")
    parser.add_argument("--micro-batches", type=int, default=8, help="of every rank and step")
    parser.add_argument("--rows", type=int, default=16, help="of every micro-batch")
    parser.add_argument("--weight", type=float, default=0.003)
    parser.add_argument("--objective", default="variance", choices=("dot", "norm", "variance", "cosine"))
    parser.add_argument("--scope", default="all", choices=("all", "rank"))
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "lamb"))
    parser.add_argument("--checkpoint", type=Path, help="is written at the end, and gone on from where it exists")
    parser.add_argument("--save-every", type=int, help="also write it every so many steps")
    return parser.parse_args()


def batch_of(step: int, rank: int, rows: int) -> tuple[Tensor, Tensor]:
    """The rows of one rank in one step; the targets are noisy."""
    g = torch.Generator().manual_seed(100_000 * rank + step)
    x = torch.randn(rows, 20, generator=g)
    return x, x[:, :5].sum(-1, keepdim=True).tanh() + 0.5 * torch.randn(rows, 1, generator=g)


def due(done: int, every: int | None, last: int) -> bool:
    """Whether to save after so many steps."""
    return done == last or (every is not None and done % every == 0)


def main() -> None:
    """Join the other processes, train, and leave them."""
    given = arguments()
    on_gpu = torch.cuda.is_available()
    if "LOCAL_RANK" not in os.environ:
        raise SystemExit("expected to be started by torchrun: torchrun --nproc_per_node 2 examples/large_batch_ddp.py")
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, local = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    train(given, rank, device)
    # The wrapper is gone by now: where it is the last to hold the group, its end may wait for gloo's thread forever.
    dist.barrier()
    dist.destroy_process_group()


def train(given: argparse.Namespace, rank: int, device: torch.device) -> None:
    """Train, report and save."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 1)).to(device)
    model = DistributedDataParallel(net, device_ids=[device.index] if device.type == "cuda" else None)
    kind = gradalign.optim.AdamW if given.optimizer == "adamw" else gradalign.optim.LAMB
    optimizer = kind(model.parameters(), lr=3e-3)
    aligner = gradalign.GradAlign(model, given.weight, objective=given.objective, scope=given.scope)

    def loss_fn(micro_batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = micro_batch
        return nn.functional.mse_loss(model(x), y)

    def save() -> None:
        if rank == 0:
            state = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "aligner": aligner.state_dict()}
            partial = given.checkpoint.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(given.checkpoint)  # a run that is killed here leaves the old checkpoint

    if given.checkpoint is not None and given.checkpoint.exists():
        saved = torch.load(given.checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
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
            save()


if __name__ == "__main__":
    main()
