"""A small model in place of the pretrained encoder, with dropout and the same signature."""

import torch
from torch import nn

from gradalign.cli.demo.reviews.arm import Arm


class ToyClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        states = self.dropout(self.embedding(input_ids)) * attention_mask.unsqueeze(-1)
        return self.head(states.sum(1) / attention_mask.sum(1, keepdim=True))


def toy_model(seed=0):
    torch.manual_seed(seed)
    return ToyClassifier()


def toy_batches(num, size=4, seed=0):
    """Class 1 has the larger tokens."""
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(num):
        labels = torch.randint(2, (size,), generator=g)
        ids = torch.randint(10, (size, 5), generator=g) + 10 * labels[:, None]
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def toy_arm(make_backward, seed=0, lr=0.05, model=None):
    return Arm(model or toy_model(seed), lr, 2, seed, make_backward)


class StepCounter:
    """A `Progress` that counts steps."""

    def __init__(self):
        self.done = 0
        self.added = 0

    def add_steps(self, steps):
        self.added += steps

    def advance(self):
        self.done += 1
