"""The examples of several processes save as they go: one that is killed in the middle of a step goes on bit for bit."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from support.rank_examples import free_port, run_example
from support.ranks import Group, RankError
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from gradalign import GradAlign


def run_and_die(rank, in_step, *arguments):
    """Rank 1 is killed while its parameters are displaced."""
    original = GradAlign.backward

    def backward(self, loss_fn, *args, **kwargs):
        def lethal(micro_batch):
            if rank == 1 and self.displaced and self.num_steps == in_step:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss_fn(micro_batch)

        return original(self, lethal, *args, **kwargs)

    GradAlign.backward = backward
    return run_example(rank, *arguments)


@pytest.fixture
def example():
    """Runs an example on two new processes."""

    def run(function, *arguments):
        group = Group(2, joined=False)
        try:
            return group.run(function, *arguments)[0]
        finally:
            group.stop()

    return run


def saved_in(path):
    """The tensors of a checkpoint, and how many steps it has."""
    if path.is_dir():
        (folder,) = path.iterdir()
        flat = path.with_suffix(".pt")
        dcp_to_torch_save(folder, flat)
        path = flat
    state = torch.load(path, weights_only=False)
    return state["model"], state["aligner"]["num_steps"]


# Five steps are done, four of them saved.
@pytest.mark.parametrize(("name", "suffix"), [("large_batch_ddp.py", ".pt"), ("large_batch_fsdp2.py", "")])
def test_an_example_that_is_killed_goes_on_bit_for_bit(example, tmp_path, name, suffix):
    options = ("--micro-batches=4", "--optimizer=lamb", "--save-every=2", "--steps=7")
    whole, parts = (tmp_path / f"{which}{suffix}" for which in ("whole", "parts"))
    rows = example(run_example, name, free_port(), *options, f"--checkpoint={whole}")
    assert [row["step"] for row in rows] == list(range(7))
    with pytest.raises(RankError, match="the process has ended"):
        example(run_and_die, 5, name, free_port(), *options, f"--checkpoint={parts}")
    assert saved_in(parts)[1] == 4
    if not suffix:  # what a save leaves that is killed
        (parts / "step-00000009").mkdir()
    assert example(run_example, name, free_port(), *options, f"--checkpoint={parts}") == rows[4:]
    (expected, num_steps), (found, num_found) = map(saved_in, (whole, parts))
    assert num_steps == num_found == 7
    assert all(torch.equal(found[key], t) for key, t in expected.items())
