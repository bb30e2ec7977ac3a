"""Copies that nobody waits for go to accelerators alone, unless an event tells when they have arrived."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gradalign
from gradalign.engine.devices import to_device

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


def test_no_other_copy_is_asynchronous():
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if "non_blocking=True" in path.read_text() and "kernels" not in path.relative_to(SOURCES).parts
    }
    assert found == WITH_AN_EVENT | READ_BY_A_DEVICE
