"""Tensors that are reduced together."""

from __future__ import annotations

import pytest
import torch

from gradalign.engine import buckets


class Later:
    """A reduction over two ranks that both have the same, which is done when it is waited for."""

    def __init__(self, log, flat):
        self.log, self.flat = log, flat
        log.append(("start", flat.numel(), flat))

    def wait(self):
        self.flat.mul_(2)
        self.log.append(("end", self.flat.numel(), self.flat))


def reduced(tensors, log):
    buckets.reduce_together(tensors, lambda flat: Later(log, flat), 0.25)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(buckets, "BYTES", 40)


def test_every_tensor_is_reduced_in_place_whatever_its_size_layout_and_dtype():
    tensors = [
        torch.randn(3, 2),
        torch.randn(()),
        torch.randn(4, 5).t(),  # larger than a buffer, in another order
        torch.randn(100),
        torch.empty(0),
        torch.randn(2).double(),
        torch.randn(2, 2).bfloat16(),
        torch.randn(3),
    ]
    before = [t.clone() for t in tensors]
    reduced(tensors, [])
    for t, b in zip(tensors, before, strict=True):
        assert torch.equal(t, b / 2)
        assert t.stride() == b.stride()


def test_buffers_are_bounded_and_two_at_most_are_there():
    log = []
    reduced([torch.ones(3) for _ in range(20)], log)
    sizes = [size for kind, size, _ in log if kind == "start"]
    assert sizes == [9] * 6 + [6]  # 36 bytes of 40
    pending = 0
    for kind, _, _ in log:
        pending += 1 if kind == "start" else -1
        assert pending <= 2
    assert pending == 0
    assert [kind for kind, _, _ in log[:4]] == ["start", "start", "end", "start"]


def test_a_large_tensor_is_not_copied():
    log, large = [], torch.ones(100)
    reduced([torch.ones(1), large, torch.ones(1), torch.ones(1)], log)
    assert [size for kind, size, _ in log if kind == "start"] == [1, 100, 2]
    assert any(flat is large for _, _, flat in log)


def test_neighbours_of_another_dtype_travel_apart():
    found = buckets.buckets([torch.ones(1), torch.ones(1).double(), torch.ones(1).double(), torch.ones(1)])
    assert [[t.dtype for t in bucket] for bucket in found] == [
        [torch.float32],
        [torch.float64, torch.float64],
        [torch.float32],
    ]
