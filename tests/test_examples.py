"""The examples run, and what they claim about themselves is so."""

import runpy
from pathlib import Path

import torch
from support.fresh_process import fresh_python

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
        assert line.replace("weight=0.03", "weight=weight") in code
