"""Copies that nobody waits for go to accelerators alone, unless an event tells when they have arrived."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gradalign
from gradalign.engine.devices import sum_in_order, to_device

SOURCES = Path(gradalign.__file__).parent
WITH_AN_EVENT = {"engine/low_precision.py"}
READ_BY_A_DEVICE = {"estimators/gradient_store.py"}  # pinned memory that goes back in the order of the stream


class Moved:
    """Notes how it was asked to move."""

    dtype = torch.float32

    def to(self, device, dtype, *, non_blocking):
        return device, dtype, non_blocking


@pytest.mark.parametrize(("kind", "waits"), [("cpu", True), ("cuda", False), ("xpu", False)])
def test_the_host_waits_for_what_it_reads(kind, waits):
    device = torch.device(kind)
    assert to_device(Moved(), device) == (device, torch.float32, not waits)
    assert to_device(Moved(), device, torch.float64) == (device, torch.float64, not waits)


class Ops(TorchDispatchMode):
    """Notes the names of all ops."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_a_sum_is_taken_in_order_and_by_no_op_that_deterministic_mode_refuses():
    parts = torch.tensor([1e16, 1.0, -1e16, 1.0], dtype=torch.float64)
    assert sum_in_order(parts).item() == 1.0  # 2 in another order
    with Ops() as ops:
        sum_in_order(parts.to("meta"))
    assert "aten::cumsum" not in ops.names
    assert "aten::sum" in ops.names


def test_no_other_sum_is_cumulative():
    assert [p.name for p in SOURCES.rglob("*.py") if ".cumsum(" in p.read_text() and p.parent.name != "kernels"] == [
        "devices.py"
    ]


def test_no_other_copy_is_asynchronous():
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if "non_blocking=True" in path.read_text() and "kernels" not in path.relative_to(SOURCES).parts
    }
    assert found == WITH_AN_EVENT | READ_BY_A_DEVICE
