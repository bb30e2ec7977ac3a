"""What kernels read on the device while a CUDA graph is captured is kept, each once."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from gradalign.kernels import tables


def test_a_table_that_several_captures_use_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, tuple] = {}
    monkeypatch.setattr(tables, "_kept_for_graphs", kept)
    first, second = (tables.Table(tables.integers([i]), torch.device("cpu")) for i in range(2))
    copies = [table.on(7) for table in (first, second)]
    for _ in range(3):  # None: the stream is being captured
        assert first.on(None) is copies[0]
        assert second.on(None) is copies[1]
    assert [copy.tolist() for _, copy in kept.values()] == [[0], [1]]
