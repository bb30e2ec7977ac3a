"""What tasks share: seeded draws, micro-batches a step, their control, and accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Samples(NamedTuple):
    """Inputs and what is to be predicted, row by row. A micro-batch is one, too."""

    inputs: Tensor
    targets: Tensor

    def rows(self, index: Tensor | slice) -> Samples:
        """Some of them."""
        return Samples(self.inputs[index], self.targets[index])


def generator(seed: int, *path: int) -> torch.Generator:
    """A generator for a seed and a place in its problem: (seed, 1, 5) and (seed, 15) have nothing in common."""
    state = 0x9E3779B97F4A7C15
    for number in (seed, *path, len(path)):  # the mixing of SplitMix64
        state = (state ^ (number + 1)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generator has this seed, for starting weights, and goes on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def cat(parts: Sequence[Samples]) -> Samples:
    """All rows, in order."""
    return Samples(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))


def deal(batches: Sequence[Samples], chance: torch.Generator) -> list[Samples]:
    """The same samples in as many micro-batches of the same size, without regard to where each came from."""
    together = cat(batches)
    order = torch.randperm(len(together.targets), generator=chance)
    return [together.rows(index) for index in order.chunk(len(batches))]


def mini_batches(
    sources: Sequence[Samples], size: int, seed: int, mixed: bool, *, drawn: int | None = None
) -> Callable[[int], list[Samples]]:
    """step -> `size` samples of each source, without repetition in a step; with `mixed` dealt anew.

    Args:
        sources: the training samples of each.
        size: of a micro-batch.
        seed: of the problem.
        mixed: deals a step's samples to its micro-batches without regard to their source.
        drawn: sources a step, drawn anew for each; None: all of them, in order.
    """

    def micro_batches(step: int) -> list[Samples]:
        chance = generator(seed, 1, step)
        chosen = (
            range(len(sources)) if drawn is None else torch.randperm(len(sources), generator=chance)[:drawn].tolist()
        )
        batches = []
        for i in chosen:
            index = torch.randperm(len(sources[i].targets), generator=chance)[:size]
            batches.append(sources[i].rows(index))
        return deal(batches, chance) if mixed else batches

    return micro_batches


def classification_loss(model: nn.Module, batch: Samples) -> Tensor:
    """The mean cross-entropy of a micro-batch."""
    return cross_entropy(model(batch.inputs), batch.targets)


def accuracy(model: nn.Module, samples: Samples) -> float:
    """The fraction that is right."""
    with torch.no_grad():
        return (model(samples.inputs).argmax(1) == samples.targets).double().mean().item()


def accuracies(parts: dict[str, Samples]) -> Callable[[nn.Module], dict[str, float]]:
    """An `evaluate`: the accuracy on each part in evaluation mode, which is undone."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            return {name: accuracy(model, samples) for name, samples in parts.items()}
        finally:
            for module, training in modes:
                module.training = training

    return evaluate


def without_overlap(documents: Sequence[str], sizes: Sequence[int], chance: torch.Generator) -> list[Tensor]:
    """Rows for several sets, no document in two of them, each shuffled and cut to size.

    Documents in random order go to the first set until it is full, then to the next; the last takes all that are left.
    """
    names = sorted(set(documents))
    members: dict[str, list[int]] = {name: [] for name in names}
    for i, name in enumerate(documents):
        members[name].append(i)
    filled: list[list[int]] = [[] for _ in sizes]
    current = 0
    for j in torch.randperm(len(names), generator=chance).tolist():
        if len(filled[current]) >= sizes[current] and current + 1 < len(sizes):
            current += 1
        filled[current].extend(members[names[j]])
    for rows, size in zip(filled, sizes, strict=True):
        if len(rows) < size:
            raise ValueError(f"expected at least {size} rows for each set; got {len(rows)} of {len(documents)}")
    shuffled = (torch.tensor(rows)[torch.randperm(len(rows), generator=chance)] for rows in filled)
    return [rows[:size] for rows, size in zip(shuffled, sizes, strict=True)]


def flip(targets: Tensor, fraction: float, num_classes: int, chance: torch.Generator) -> Tensor:
    """Exactly this fraction, rounded, becomes one of the other classes."""
    wrong = torch.randperm(len(targets), generator=chance)[: round(fraction * len(targets))]
    shift = torch.randint(1, num_classes, (len(wrong),), generator=chance)
    flipped = targets.clone()
    flipped[wrong] = (targets[wrong] + shift) % num_classes
    return flipped


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(widths):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
