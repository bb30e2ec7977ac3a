"""Stochastic rounding to bfloat16 with a counter-based stream of its own.

torch's generators are never touched (that would shift dropout), and the arithmetic is 32-bit integers, so that every
backend draws the same bits:

    mix(x):  x += 0x9E3779B9;  x ^= x >> 16;  x *= 0x7FEB352D;  x ^= x >> 15;  x *= 0x846CA68B;  x ^= x >> 16
    key     = mix(seed_lo ^ mix(seed_hi ^ mix(tensor_index ^ mix(t))))
    bits(e) = mix(e_lo ^ mix(key ^ e_hi)) & 0xFFFF

all modulo 2^32. `seed` is an int64 (lo and hi its 32-bit halves), `tensor_index` the tensor's position in the op's list, t
the number of this step (`steps[i] + 1`), e the element's row-major index in its tensor, 64 bits. The bits are added to
the pattern of the float32 value, which is then truncated: it goes up with the probability of the distance from below. A
value that bfloat16 can represent stays, and inf and NaN are converted as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF


class RoundingStream:
    """The stream of one tensor in one step; `round` takes its elements in row-major order, piece by piece."""

    def __init__(self, seed: Tensor, tensor_index: int, t: Tensor) -> None:
        seed = seed.reshape(()).long()
        low, high = seed & WORD, (seed >> 32) & WORD
        self._key = _mix(low ^ _mix(high ^ _mix(_mix(t.long() & WORD) ^ tensor_index)))
        self._next_element = 0

    def round(self, values: Tensor) -> Tensor:
        """The next `values.numel()` elements of the tensor, float32 to bfloat16."""
        first = self._next_element
        self._next_element += values.numel()
        element = torch.arange(first, self._next_element, device=values.device)
        bits = _mix((element & WORD) ^ _mix(self._key ^ (element >> 32))) & 0xFFFF
        pattern = values.float().contiguous().view(torch.int32)
        rounded = ((pattern + bits.view(values.shape).int()) >> 16).to(torch.int16).view(torch.bfloat16)
        return torch.where(values.isfinite(), rounded, values.to(torch.bfloat16))


def _mix(x: Tensor) -> Tensor:
    x = (x + 0x9E3779B9) & WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)
