"""The per-tensor scalars of the optimizer steps: steps <- steps + 1, and what an update needs to know of the new t.

Coefficients are computed in float64 and rounded to float32 once, as in the reference.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradalign.backends.signatures import Tensors
from gradalign.kernels.launch import launch
from gradalign.kernels.rounding import stream_key
from gradalign.kernels.run import make_current, to_device
from gradalign.kernels.tables import current_stream
from gradalign.kernels.tensor_lists import entry_of

BLOCK = 128
STEP_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.int64: tl.int64}


@triton.jit
def power(base, t):
    """base ** t for t in int64, by squaring, in float64."""
    result = tl.full(t.shape, 1.0, tl.float64)
    for _ in range(32):
        result = tl.where((t & 1) != 0, result * base, result)
        base = base * base
        t = t >> 1
    return result


@triton.jit
def double(parts, k, like):
    """The float64 number that floats 2 k and 2 k + 1 add up to, in the shape of `like`."""
    zeros = tl.zeros(like.shape, tl.float64)
    return (zeros + parts[2 * k]) + (zeros + parts[2 * k + 1])


@triton.jit(do_not_specialize=["num_tensors", "scalars", "skip", "seed"])
def advance(
    steps,
    num_tensors,
    scalars,
    parts,
    skip,
    seed,
    flags,
    coefs,
    coefficients: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count the step of every tensor, unless skipped.

    Args:
        steps: int64 addresses of the 0-dim steps.
        num_tensors: how many.
        scalars: 0-dim tensors for `coefficients`.
        parts: numbers for `coefficients`, each as a float32 and what that lacks of it.
        skip: 0-dim, or None.
        seed: 0-dim int64, or None.
        flags: int32 [2, num_tensors]: whether the step is made; the key of the rounding stream.
        coefs: float32 [number of coefficients, num_tensors].
        coefficients: (t as int64, scalars, parts) -> tuple of vectors.
        STEP: dtype of the steps.
        BLOCK: tensors a program.
    """
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = tensor < num_tensors
    ptr = tl.load(steps + tensor, mask=mask, other=0).to(tl.pointer_type(STEP))
    step = tl.load(ptr, mask=mask, other=0)
    t = (step + 1).to(tl.int64)
    kept = tl.full([BLOCK], 1, tl.int32)
    if skip is not None:
        kept = tl.where(tl.load(skip) == 0, kept, 0)
    tl.store(ptr, tl.where(kept != 0, step + 1, step), mask=mask)
    tl.store(flags + tensor, kept, mask=mask)
    if seed is not None:
        key = stream_key(tl.load(seed), tensor, t).to(tl.int32, bitcast=True)
        tl.store(flags + num_tensors + tensor, key, mask=mask)
    values = coefficients(t, scalars, parts)
    for k in tl.static_range(len(values)):
        tl.store(coefs + k * num_tensors + tensor, values[k], mask=mask)


class Coefficients(NamedTuple):
    """Numbers per tensor that an update needs and that depend on t.

    Attributes:
        function: jitted, (t as int64, scalars, parts) -> tuple of float32 vectors.
        num: how many vectors.
        scalars: 0-dim tensors that it is given.
        numbers: floats that it is given, each as two parts; see `double`.
    """

    function: Any
    num: int
    scalars: tuple[Tensor, ...] = ()
    numbers: tuple[float, ...] = ()


def advance_steps(
    steps: Tensors, coefficients: Coefficients, skip: Tensor | None, seed: Tensor | None
) -> tuple[Tensor, ...]:
    """steps (float32, float64 or int64) <- steps + 1 unless `skip` != 0.

    Returns:
        vectors over the tensors: kept, key, *coefficients.
    """
    device, entry = steps[0].device, entry_of(steps)
    dtype, *others = dict.fromkeys(entry.format.dtypes)
    if others:
        wide = [s.double() for s in steps]
        vectors = advance_steps(wide, coefficients, skip, seed)
        torch._foreach_copy_(list(steps), wide)
        return vectors
    flags = torch.empty(2, len(steps), dtype=torch.int32, device=device)
    coefs = torch.empty(coefficients.num, len(steps), dtype=torch.float32, device=device)
    scalars = tuple([to_device(s, device) for s in coefficients.scalars])
    skip, seed = (None if s is None else to_device(s, device) for s in (skip, seed))
    parts = tuple(part for number in coefficients.numbers for part in _parts(number))
    constants = (coefficients.function, STEP_DTYPES[dtype], BLOCK)
    types = tuple([None if s is None else s.dtype for s in (*scalars, skip, seed)])
    with make_current(device):
        addresses = entry.table.on(current_stream(device))
        launch(
            advance,
            (-(-len(steps) // BLOCK),),
            (addresses, len(steps), scalars, parts, skip, seed, flags, coefs, *constants),
            (coefficients.function, dtype, types),
            (steps,),
        )
    return (*flags, *coefs)


def _parts(number: float) -> tuple[float, float]:
    high = _float32(number)
    return high, _float32(number - high)


def _float32(number: float) -> float:
    return struct.unpack("f", struct.pack("f", number))[0]
