"""The one kernel: a program takes a chunk of a tensor and runs an op's block over it.

    block(ptrs, offs, mask, start, scalars, sums, options) -> sums

    ptrs     one pointer a list of tensors, at the chunk's first element
    offs     the elements of the block, counted from there; `start + offs` is their place in the tensor
    mask     None (constant) in a full block of a chunk whose addresses are all multiples of 16 bytes, which is then loaded
             and stored 16 bytes at a time; else which of the elements there are
    scalars  what does not change within a tensor, as float32 or float64
    sums     one float32 vector a reduction; `lanes` folds a block into it

A block loads all that it reads before it stores, since lists may be one another's.
"""

import triton
import triton.language as tl

BLOCK = 1024  # elements: 8 a thread, which is 16 bytes of the narrowest dtype
TAIL = BLOCK // 8
CHUNK = 16 * BLOCK  # elements a program: few enough to balance, enough for the second stage of the reductions to be short
LANES = tl.constexpr(4)  # neighbours that one thread holds in every dtype: a fold of them moves nothing


@triton.jit
def read(ptr, offs, mask):
    """The block's elements, in their storage dtype; 0 where the mask is off."""
    if mask is None:
        return tl.load(ptr + offs)
    else:
        return tl.load(ptr + offs, mask=mask, other=0)


@triton.jit
def read_wide(ptr, offs, mask):
    """The block's elements, in float32."""
    return read(ptr, offs, mask).to(tl.float32)


@triton.jit
def lanes(x):
    """A block's sum, folded as far as a thread goes alone; of a masked block, `x` must be 0 where there is nothing."""
    return tl.sum(tl.reshape(x, (x.shape[0] // LANES, LANES)), axis=1)


@triton.jit
def _addresses(columns, dtypes: tl.constexpr, tensor, start):
    addresses = ()
    for k in tl.static_range(len(dtypes)):
        addresses = addresses + (tl.load(columns[k] + tensor) + start * (dtypes[k].primitive_bitwidth // 8),)
    return addresses


@triton.jit
def _pointers(addresses, dtypes: tl.constexpr, ALIGNED: tl.constexpr):
    ptrs = ()
    for k in tl.static_range(len(dtypes)):
        ptr = addresses[k].to(tl.pointer_type(dtypes[k]))
        if ALIGNED:
            # On the pointer and before any offset: the hint is lost when additions are folded, and it would hold for
            # the masked loop too if the two shared one value.
            ptr = tl.multiple_of(ptr, 16)
        ptrs = ptrs + (ptr,)
    return ptrs


@triton.jit
def _loaded(ptrs, offset):
    values = ()
    for k in tl.static_range(len(ptrs)):
        values = values + (tl.load(ptrs[k] + offset),)
    return values


@triton.jit
def _zeros(num: tl.constexpr, length: tl.constexpr):
    sums = ()
    for _ in tl.static_range(num):
        sums = sums + (tl.zeros([length], tl.float32),)
    return sums


def _profile_name(specialization):
    return f"gradalign_{specialization.constants['block'].__name__}"


@triton.jit(do_not_specialize=["first", "total"], repr=_profile_name)
def sweep(
    chunks,
    numels,
    first,
    total,
    columns,
    scalars,
    per_tensor,
    floats,
    partials,
    block: tl.constexpr,
    dtypes: tl.constexpr,
    options: tl.constexpr,
    NUM_SUMS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Run `block` over chunk `first + program_id` of `total`.

    Args:
        chunks: int64 per chunk, tensor << 32 | chunk within it.
        numels: int64 per tensor.
        first: the group's first chunk.
        total: chunks of all groups, the stride of `partials`.
        columns: per list, int64 addresses.
        scalars: 0-dim tensors.
        per_tensor: vectors with one entry a tensor.
        floats: numbers; a block sees scalars + per_tensor + floats.
        partials: float32 [NUM_SUMS, total].
        block: the op.
        dtypes: per list.
        options: of the op.
        NUM_SUMS: how many sums the block keeps.
        CHUNK: elements.
        BLOCK: elements.
        TAIL: elements of a masked block: few, since each of its accesses keeps registers of its own.
    """
    chunk = tl.program_id(0) + first
    packed = tl.load(chunks + chunk)
    tensor = packed >> 32
    start = (packed & 0xFFFFFFFF) * CHUNK
    n = tl.minimum(tl.load(numels + tensor) - start, CHUNK).to(tl.int32)
    addresses = _addresses(columns, dtypes, tensor, start)
    known = _loaded(scalars, 0) + _loaded(per_tensor, tensor) + floats

    bits = addresses[0]
    for k in tl.static_range(1, len(dtypes)):
        bits |= addresses[k]
    full = tl.where(bits & 15 == 0, n // BLOCK * BLOCK, 0)
    sums = _zeros(NUM_SUMS, BLOCK // LANES)
    ptrs = _pointers(addresses, dtypes, True)
    for i in range(0, full, BLOCK):
        sums = block(ptrs, i + tl.arange(0, BLOCK), None, start, known, sums, options)
    tail_sums = _zeros(NUM_SUMS, TAIL // LANES)
    ptrs = _pointers(addresses, dtypes, False)
    for i in range(full, n, TAIL):
        offs = i + tl.arange(0, TAIL)
        tail_sums = block(ptrs, offs, offs < n, start, known, tail_sums, options)

    for k in tl.static_range(NUM_SUMS):
        tl.store(partials + k * total + chunk, tl.sum(sums[k]) + tl.sum(tail_sums[k]))
