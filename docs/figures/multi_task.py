"""The alignment of four tasks as `gradalign.telemetry` draws it, and how far a sketched cosine is from the true one."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from small import command

import gradalign

TASKS = ("sum", "sum, noisy", "minus the sum", "a product")


class Tasks:
    """A shared trunk with one head; the targets differ between tasks."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(16, 256), torch.nn.Tanh(), torch.nn.Linear(256, 1))
        self.micro_batches = [(self.inputs(), task) for task in TASKS * 2]
        self.labels = [task for _, task in self.micro_batches]

    @staticmethod
    def inputs() -> torch.Tensor:
        """A micro-batch of 64."""
        return torch.randn(64, 16)

    def loss(self, micro_batch: tuple[torch.Tensor, str]) -> torch.Tensor:
        """Squared error of a task."""
        x, task = micro_batch
        total = x[:, :4].sum(1)
        target = {
            "sum": total,
            "sum, noisy": total + torch.randn(len(x), generator=torch.Generator().manual_seed(1)),
            "minus the sum": -total,
            "a product": x[:, 4] * x[:, 5] * 2,
        }[task]
        return (self.model(x).squeeze(1) - target).square().mean()


def cosines(tasks: Tasks) -> torch.Tensor:
    """Between the tasks' mean gradients, without sketches, in the order of the statistics."""
    means = []
    for task in sorted(TASKS):
        losses = [tasks.loss(batch) for batch in tasks.micro_batches if batch[1] == task]
        grads = torch.autograd.grad(sum(losses) / len(losses), list(tasks.model.parameters()))
        means.append(torch.cat([g.reshape(-1) for g in grads]).double())
    unit = torch.nn.functional.normalize(torch.stack(means))
    return unit @ unit.T


def draw(out: Path, effort: int) -> None:
    """tasks.png is the heat map, sketch.png the scatter over so many steps."""
    tasks = Tasks()
    aligner = gradalign.GradAlign(tasks.model, weight=0.0)
    optimizer = torch.optim.AdamW(tasks.model.parameters(), lr=1e-3)
    exact, sketched = [], []
    for step in range(effort):
        tasks.micro_batches = [(tasks.inputs(), task) for _, task in tasks.micro_batches]
        true = cosines(tasks)
        aligner.backward(tasks.loss, tasks.micro_batches, tasks=tasks.labels)
        if step == 0:
            gradalign.telemetry.plot_tasks(aligner.stats, out / "tasks.png")
        pairs = torch.triu_indices(len(TASKS), len(TASKS), 1)
        exact += true[tuple(pairs)].tolist()
        sketched += aligner.stats.task_cosines[tuple(pairs)].tolist()
        optimizer.step()
        optimizer.zero_grad()
    errors = torch.tensor(sketched) - torch.tensor(exact)
    print(
        f"{len(errors)} cosines: root mean square error {errors.square().mean().sqrt():.4f}, largest {errors.abs().max():.4f}"
    )
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(exact, sketched, ".", markersize=3)
    axes.fill_between([-1, 1], [-1.044, 0.956], [-0.956, 1.044], alpha=0.2, label="two standard errors of 0.022")
    axes.set(xlabel="cosine", ylabel="cosine of sketches", xlim=(-1, 1), ylim=(-1, 1))
    axes.legend(fontsize=8)
    figure.savefig(out / "sketch.png", dpi=120)


if __name__ == "__main__":
    command(draw, effort=60)
