"""The second stage of the reductions: the chunks' sums are added in float64, in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradalign.kernels.launch import launch

BLOCK = 1024  # 8 a thread; 32 spill
BLOCK_EACH = 256  # of one tensor: most have few chunks


@triton.jit(do_not_specialize=["num_chunks", "num_sums"])
def sum_chunks(partials, results, num_chunks, num_sums, BLOCK: tl.constexpr):
    """results[k] <- partials[k, :].sum(), 0 from `num_sums` on."""
    k = tl.program_id(0)
    n = tl.where(k < num_sums, num_chunks, 0)
    total = tl.zeros([BLOCK], tl.float64)
    for i in range(0, n, BLOCK):
        offs = i + tl.arange(0, BLOCK)
        total += tl.load(partials + k * num_chunks + offs, mask=offs < n, other=0.0)
    tl.store(results + k, tl.sum(total))


@triton.jit(do_not_specialize=["num_chunks", "num_tensors"])
def sum_chunks_each(partials, ranges, results, num_chunks, num_tensors, BLOCK: tl.constexpr):
    """results[k, t] <- partials[k, chunks of t].sum()."""
    t = tl.program_id(0)
    k = tl.program_id(1)
    end = tl.load(ranges + num_tensors + t).to(tl.int32)
    total = tl.zeros([BLOCK], tl.float64)
    for i in range(tl.load(ranges + t).to(tl.int32), end, BLOCK):
        offs = i + tl.arange(0, BLOCK)
        total += tl.load(partials + k * num_chunks + offs, mask=offs < end, other=0.0)
    tl.store(results + k * num_tensors + t, tl.sum(total))


def sum_all(partials: Tensor, num_chunks: int, num_sums: int, num_results: int) -> Tensor:
    """float64 [num_results], from `partials` [num_sums, num_chunks]."""
    results = torch.empty(num_results, dtype=torch.float64, device=partials.device)
    launch(sum_chunks, (num_results,), (partials, results, num_chunks, num_sums, BLOCK))
    return results


def sum_each(partials: Tensor, ranges: Tensor, num_chunks: int, num_sums: int) -> Tensor:
    """float64 [num_sums, tensors], from `partials` [num_sums, num_chunks]."""
    num_tensors = ranges.shape[1]
    results = torch.empty(num_sums, num_tensors, dtype=torch.float64, device=partials.device)
    args = (partials, ranges, results, num_chunks, num_tensors, BLOCK_EACH)
    launch(sum_chunks_each, (num_tensors, num_sums), args)
    return results
