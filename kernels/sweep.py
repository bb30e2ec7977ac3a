"""The one kernel: a program takes a chunk of a tensor and runs an op's block over it.

    block(ptrs, at, scalars, sums, options) -> sums

    ptrs     one pointer a list of tensors, at the chunk's first element
    at       which of the chunk's elements; for `read`, `write`, `masked` and `elements`
    scalars  what does not change within a tensor, as float32 or float64
    sums     one vector a reduction, to which the block adds its `row_sums`
    options  constants

Where an op allows two lists to be the same, its block loads all that it reads before it stores.

A block of elements is a matrix with rows of 4. A full block of a chunk whose addresses are all multiples of 16 bytes is
loaded and stored 16 bytes at a time: a row in 4-byte dtypes, two rows in 2-byte dtypes. Those are addressed as a vector,
so that the compiler chooses the layout of each kind by itself; were they to share one, all that is computed would be
moved between threads on its way to 4-byte storage, instead of what is loaded from 2-byte storage.

A sum is in float32 over 128 elements of full blocks and over the 4 of a row of masked ones, of which a chunk may consist; from
there on it is in float64.
"""

import triton
import triton.language as tl

from gradalign.kernels.rounding import converted, widen

BLOCK = 1024  # elements: 8 a thread, which is 16 bytes of the narrowest dtype
TAIL = BLOCK // 8  # elements of a masked block: one per thread, since each of its accesses takes registers of its own
CHUNK = (
    16 * BLOCK
)  # elements a program: few enough to balance, enough for the second stage of the reductions to be short
ROW = tl.constexpr(4)


@triton.jit
def _at(i, n, start, SIZE: tl.constexpr, MASKED: tl.constexpr):
    flat = i + tl.arange(0, SIZE)
    rows = i + tl.arange(0, SIZE // ROW)[:, None] * ROW + tl.arange(0, ROW)[None, :]
    if MASKED:
        return flat, rows, start, flat < n, rows < n
    else:
        return flat, rows, start


@triton.jit
def read(ptr, at):
    """The elements, in their storage dtype; 0 beyond the tensor's end."""
    if ptr.dtype.element_ty.primitive_bitwidth == 32:
        x = tl.load(ptr + at[1]) if len(at) == 3 else tl.load(ptr + at[1], mask=at[4], other=0)
    else:
        x = tl.load(ptr + at[0]) if len(at) == 3 else tl.load(ptr + at[0], mask=at[3], other=0)
        x = tl.reshape(x, at[1].shape)
    return x


@triton.jit
def read_wide(ptr, at):
    """The elements, in float32."""
    return widen(read(ptr, at))


@triton.jit
def write(ptr, at, x):
    """Store `x`: the same bits where it has the storage dtype, else rounded to nearest."""
    x = converted(x, ptr.dtype.element_ty)
    if ptr.dtype.element_ty.primitive_bitwidth == 32:
        if len(at) == 3:
            tl.store(ptr + at[1], x)
        else:
            tl.store(ptr + at[1], x, mask=at[4])
    else:
        x = tl.reshape(x, at[0].shape)
        if len(at) == 3:
            tl.store(ptr + at[0], x)
        else:
            tl.store(ptr + at[0], x, mask=at[3])


@triton.jit
def scaled(x, scale):
    """Scale x, 0 where the scale is: it selects, since 0 x inf is NaN."""
    return tl.where(scale == 0, 0.0, x * scale.to(tl.float32))


@triton.jit
def masked(x, at):
    """`x`, 0 beyond the tensor's end."""
    if len(at) == 3:
        return x
    else:
        return tl.where(at[4], x, 0.0)


@triton.jit
def elements(at):
    """The places of the elements in their tensor, int64."""
    return at[2] + at[1]


@triton.jit
def row_sums(x):
    """A block's sum, folded as far as a thread goes alone; `x` must be 0 beyond the tensor's end."""
    return tl.sum(x, axis=1)


@triton.jit
def _addresses(lists, dtypes: tl.constexpr, tensor, start):
    addresses = ()
    for k in tl.static_range(len(dtypes)):
        addresses = addresses + (tl.load(lists[k] + tensor) + start * (dtypes[k].primitive_bitwidth // 8),)  # type: ignore[assignment]
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
        ptrs = ptrs + (ptr,)  # type: ignore[assignment]
    return ptrs


@triton.jit
def _loaded(ptrs, offset):
    values = ()
    for k in tl.static_range(len(ptrs)):
        values = values + (tl.load(ptrs[k] + offset),)
    return values


@triton.jit
def _zeros(num: tl.constexpr, length: tl.constexpr, dtype: tl.constexpr):
    sums = ()
    for _ in tl.static_range(num):
        sums = sums + (tl.zeros([length], dtype),)  # type: ignore[assignment]
    return sums


def _profile_name(specialization):
    return f"gradalign_{specialization.constants['block'].__name__}"


@triton.jit(do_not_specialize=["first", "total", "scalars", "per_tensor"], repr=_profile_name)
def sweep(
    chunks,
    numels,
    first,
    total,
    lists,
    scalars,
    per_tensor,
    floats,
    partials,
    block: tl.constexpr,
    dtypes: tl.constexpr,
    variant: tl.constexpr,
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
        lists: per list of tensors, int64 addresses.
        scalars: 0-dim tensors.
        per_tensor: vectors with one entry per tensor.
        floats: numbers; a block sees scalars + per_tensor + floats.
        partials: float64 [NUM_SUMS, total].
        block: the op.
        dtypes: per list.
        variant: the block's options (`options` itself is a name that Triton's binder uses).
        NUM_SUMS: how many sums the block keeps.
        CHUNK: elements.
        BLOCK: elements.
        TAIL: elements.
    """
    chunk = tl.program_id(0) + first
    packed = tl.load(chunks + chunk)
    tensor = packed >> 32
    start = (packed & 0xFFFFFFFF) * CHUNK
    n = tl.minimum(tl.load(numels + tensor) - start, CHUNK).to(tl.int32)
    addresses = _addresses(lists, dtypes, tensor, start)
    values = _loaded(scalars, 0) + _loaded(per_tensor, tensor) + floats

    bits = addresses[0]
    for k in tl.static_range(1, len(dtypes)):
        bits |= addresses[k]
    full = tl.where(bits & 15 == 0, n // BLOCK * BLOCK, 0)
    sums = _zeros(NUM_SUMS, BLOCK // ROW, tl.float32)
    ptrs = _pointers(addresses, dtypes, True)
    for i in range(0, full, BLOCK):
        sums = block(ptrs, _at(i, n, start, BLOCK, False), values, sums, variant)
    tail_sums = _zeros(NUM_SUMS, TAIL // ROW, tl.float64)
    ptrs = _pointers(addresses, dtypes, False)
    for i in range(full, n, TAIL):
        tail_sums = block(ptrs, _at(i, n, start, TAIL, True), values, tail_sums, variant)

    for k in tl.static_range(NUM_SUMS):
        # In pairs first: with as many float64 as there are sums, one op needs more registers than it may have.
        pairs = tl.sum(tl.reshape(sums[k], [BLOCK // ROW // 2, 2]), axis=1).to(tl.float64)
        tl.store(partials + k * total + chunk, tl.sum(pairs) + tl.sum(tail_sums[k]))
