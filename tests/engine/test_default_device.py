"""`torch.set_default_device` and `with torch.device(...)` move nothing of ours: what is made has a device by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from support.networks import make, trainable
from torch.utils._device import _device_constructors

import gradalign
from gradalign.engine import sketch
from gradalign.estimators import ESTIMATORS

SOURCES = Path(gradalign.__file__).parent
CONSTRUCTORS = {f.__name__ for f in _device_constructors()}


def named(call):
    """The constructor of tensors that a call names, or None."""
    function = call.func
    of_torch = isinstance(function, ast.Attribute) and getattr(function.value, "id", None) == "torch"
    return function.attr if of_torch and function.attr in CONSTRUCTORS else None


def test_every_tensor_that_is_made_names_its_device():
    nameless, seen = [], 0
    ours = [*(p for p in SOURCES.rglob("*.py") if "cli" not in p.parts), *(SOURCES.parent / "kernels").rglob("*.py")]
    for path in ours:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if named(call):
                seen += 1
                if not any(keyword.arg == "device" for keyword in call.keywords):
                    nameless.append(f"{path.name}:{call.lineno}: torch.{named(call)}")
    assert seen > 10
    assert nameless == []


CASES = [
    *[{"estimator": estimator} for estimator in ESTIMATORS],
    {"objective": "variance", "estimator": "leave_one_out"},
    {"objective": "cosine", "difference": "central"},
]


def trained(elsewhere, **options):
    """The parameters after two steps under a default device; what is made once in a process is made anew."""
    sketch._pattern.cache_clear()
    sketch._turns.cache_clear()
    model, loss_fn, batches = make(dtype=torch.float32)
    aligner = gradalign.GradAlign(model, 0.01, telemetry=True, **options)
    optimizer = gradalign.optim.AdamW(trainable(model), lr=0.01, max_grad_norm=1.0, backend=options["backend"])
    with torch.device(elsewhere):
        for _ in range(2):
            aligner.backward(loss_fn, batches)
            optimizer.step()
            optimizer.zero_grad()
    return trainable(model)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.values()))
def test_a_step_is_the_same_under_any_default_device(case, backend):
    moved = trained("meta", backend=backend, **case)
    assert all(map(torch.equal, moved, trained("cpu", backend=backend, **case)))
