from __future__ import annotations

import pytest
import torch

from benchmarks.steps.kernel_traffic import BYTES, KernelTraffic, WithTraffic, bandwidth
from gradalign.backends import reference

CPU = torch.device("cpu")
N = 100
COPY = 4 * N


def tensors(num=1):
    return [torch.ones(N // num) for _ in range(num)]


def arguments():
    """Each op on n elements in fp32, and its reads + writes of DESIGN's table."""
    scale = torch.tensor(0.5)
    return {
        "norm_dot": ((tensors(2), tensors(2)), {}, 2),
        "perturb_": ((tensors(), tensors(), tensors(), scale), {}, 4),
        "restore_": ((tensors(), tensors()), {}, 2),
        "swap_": ((tensors(), tensors()), {}, 4),
        "accumulate_": ((tensors(), tensors(), scale), {}, 3),
        "combine_": ((tensors(), tensors(), tensors(), scale, scale), {}, 3),
    }


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_those_of_the_table(name):
    args, kwargs, copies = arguments()[name]
    use = KernelTraffic(CPU)
    with use.recording():
        for _ in range(2):
            getattr(reference, name)(*args, **kwargs)
    entry = use.ops[name]
    assert (entry["calls"], entry["bytes"]) == (2, 2 * copies * COPY)
    assert entry["seconds"] > 0


def test_a_second_direction_and_masters_are_counted():
    scale = torch.tensor(0.5)
    count = BYTES["perturb_"]
    assert count(tensors(), tensors(), tensors(), scale, tensors(), scale) == 5 * COPY
    assert count(tensors(), tensors(), tensors(), scale, from_backups=True) == 3 * COPY
    assert BYTES["norm_dot"](tensors()) == COPY


def test_the_backends_are_put_back_after_an_error():
    before = reference.norm_dot

    def fail():
        with KernelTraffic(CPU).recording():
            assert reference.norm_dot is not before
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert reference.norm_dot is before


def test_a_watched_method_says_what_a_step_uses():
    class Restoring:
        def step(self, micro_batches):
            reference.restore_(tensors(), tensors())

    watched = WithTraffic(Restoring(), CPU)
    for _ in range(4):
        watched.step([])
    use = watched.mean()["restore_"]
    assert (use["calls"], use["bytes"]) == (1, 2 * COPY)


def test_bandwidth_is_that_of_memory():
    assert 1e8 < bandwidth(2**16, torch.float32, CPU) < 1e13
