"""`tasks=` on several processes: the cosines of tasks are those of one process."""

from __future__ import annotations

import pytest
from support.rank_cases import compare_with_one_process, sharded
from torch.nn.parallel import DistributedDataParallel


def compared(rank, distribute):
    options = {"estimator": "split", "radius": 1e-2}
    return compare_with_one_process(rank, 2, distribute, options, tasks=["a", "b", "a", "b"])


@pytest.mark.parametrize("distribute", [DistributedDataParallel, sharded])
def test_alignment_of_tasks(two_ranks, distribute):
    assert max(two_ranks.run(compared, distribute)) < 1e-6  # sketches are in float32
