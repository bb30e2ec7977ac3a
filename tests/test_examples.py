"""The examples run, and what they claim about themselves is so."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.fresh_process import fresh_python
from support.rank_examples import free_port, run_example
from support.ranks import Group

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_aligned_loop_prints_both_losses():
    done = fresh_python(EXAMPLES / "aligned_loop.py")
    assert (done.returncode, done.stderr) == (0, "")
    plain, aligned, last = done.stdout.splitlines()
    assert 0.2 < float(plain.split()[-1]) < 0.8
    assert 0.2 < float(aligned.split()[-1]) < 0.8
    assert last.startswith("last aligned step: 10 passes for 8 micro-batches")


def test_the_two_loops_differ_by_the_weight_alone():
    example = runpy.run_path(str(EXAMPLES / "aligned_loop.py"))
    models = {}
    for name, weight in (("plain", None), ("aligned", 0.0), ("more", 0.03)):
        models[name] = example["make_model"]()
        steps = example["make_steps"](5, seed=2)
        if weight is None:
            example["train_plain"](models[name], steps)
        else:
            example["train_aligned"](models[name], steps, weight)
    plain, aligned, more = (torch.cat([p.detach().flatten() for p in models[name].parameters()]) for name in models)
    assert torch.equal(plain, aligned)
    assert not torch.equal(plain, more)


def test_the_diff_in_the_docstring_is_the_diff_of_the_loops():
    text = (EXAMPLES / "aligned_loop.py").read_text()
    docstring, code = text.split('"""')[1], text.split('"""', 2)[2]
    shown = [line[5:].strip() for line in docstring.splitlines() if line.startswith("    ") and line.strip()]
    assert len(shown) == 7
    for line in shown:
        assert line.replace("weight=0.003", "weight=weight") in code


@pytest.mark.slow
def test_an_example_of_several_processes_runs_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, EXAMPLES / "large_batch_fsdp2.py", "--steps=2"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [0, 1]


@pytest.fixture(scope="module")
def example():
    """Runs an example with some processes; returns what rank 0 printed."""
    groups = {num: Group(num, joined=False) for num in (1, 2, 4)}

    def run(num, name, *arguments):
        return groups[num].run(run_example, name, free_port(), "--micro-batches=4", *arguments)[0]

    yield run
    for group in groups.values():
        group.stop()


@pytest.mark.parametrize("options", [("--optimizer=lamb",), ("--scope=rank",)])
def test_the_example_of_data_parallelism_goes_on_bit_for_bit(example, tmp_path, options):
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    rows = example(2, "large_batch_ddp.py", *options, "--steps=6", f"--checkpoint={whole}")
    first = example(2, "large_batch_ddp.py", *options, "--steps=3", f"--checkpoint={parts}")
    second = example(2, "large_batch_ddp.py", *options, "--steps=6", f"--checkpoint={parts}")
    assert [row["step"] for row in rows] == list(range(6))
    assert first + second == rows
    saved = [torch.load(path, weights_only=True)["model"] for path in (whole, parts)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_the_example_of_shards_goes_on_bit_for_bit_and_on_another_number_of_ranks(example, tmp_path):
    name, folder = "large_batch_fsdp2.py", tmp_path / "parts"
    rows = example(2, name, "--steps=6")
    assert example(2, name, "--steps=3", f"--checkpoint={folder}") == rows[:3]
    for num in (1, 4):
        copy = shutil.copytree(folder, tmp_path / str(num))
        (row, *_) = example(num, name, "--steps=5", f"--checkpoint={copy}")
        assert row["step"] == 3
        assert row["loss"] == pytest.approx(rows[3]["loss"], rel=0.5)  # other micro-batches
    assert example(2, name, "--steps=6", f"--checkpoint={folder}") == rows[3:]
