"""The wrapper that lets a test for the CPU run on a device: here on the CPU itself."""

from __future__ import annotations

import pytest
import torch
from support.cuda.on_device import OnDevice

from gradalign.backends import reference


def test_what_was_written_comes_back_in_the_layout_of_the_caller():
    base = torch.arange(24.0)
    views = [base[1:4], base[4:12].view(2, 4).t(), base[12:24:3], torch.empty(0, 3)]
    OnDevice(reference, "cpu").restore_(views, [torch.full_like(v, -1) for v in views])
    written = {*range(1, 12), *range(12, 24, 3)}
    assert base.tolist() == [-1.0 if i in written else float(i) for i in range(24)]


@pytest.mark.parametrize("at", [-1, 3])
def test_a_write_beside_a_tensor_is_seen(at):
    class Careless:
        @staticmethod
        def restore_(params, backups):
            reference.restore_(params, backups)
            flat = params[0].as_strided((1,), (1,), params[0].storage_offset() + at)
            flat.fill_(7)

    with pytest.raises(AssertionError, match="written beside a tensor"):
        OnDevice(Careless, "cpu").restore_([torch.zeros(3)], [torch.ones(3)])
