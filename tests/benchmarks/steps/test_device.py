from __future__ import annotations

import torch

from benchmarks.steps import device


def test_a_cpu_has_none_of_it():
    assert device.observe(lambda: None, torch.device("cpu")) == {
        "host_seconds": None,
        "launches": None,
        "synchronisations": None,
    }


def test_launches_and_waits_are_counted_from_the_runtimes_calls():
    calls = {
        "cudaLaunchKernel": 7,
        "cuLaunchKernelEx": 2,
        "cudaStreamSynchronize": 3,
        "cudaDeviceSynchronize": 1,
        "aten::add": 9,
    }
    assert device.count(calls, own_waits=1) == {"launches": 9, "synchronisations": 3}
    assert device.count({}, own_waits=1) == {"launches": 0, "synchronisations": 0}
