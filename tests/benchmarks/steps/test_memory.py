from __future__ import annotations

import pytest
import torch
from support.fresh_process import fresh_python

from benchmarks.steps import memory
from benchmarks.steps.memory import PeakMemory

pytestmark = pytest.mark.skipif(not memory.STATUS.exists(), reason="the high-water mark is read from Linux's /proc")
MEBIBYTE = 2**20


def test_the_peak_holds_what_a_step_allocates_and_lets_go():
    peak = PeakMemory(torch.device("cpu"))
    small = peak.of(lambda: torch.zeros(1))
    large = peak.of(lambda: torch.ones(64 * MEBIBYTE // 4))
    assert large - small == pytest.approx(64 * MEBIBYTE, abs=16 * MEBIBYTE)


def test_a_status_that_is_not_there_is_none(monkeypatch, tmp_path):
    assert memory.status("VmNothing") is None
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.status("VmHWM") is None


def test_beyond_the_limit_an_allocation_fails_and_the_process_goes_on():
    code = (
        "import torch; from benchmarks.steps import memory; memory.limit(0.05)\n"
        "try: torch.ones(2**40)\n"
        "except RuntimeError as error: print('allocate' in str(error))"
    )
    done = fresh_python("-c", code, check=True)
    assert done.stdout == "True\n"
