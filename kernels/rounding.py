"""From float32 to the storage dtype: one rounding, to nearest or stochastically."""

import triton
import triton.language as tl
from triton import knobs

# The interpreter truncates float32 to bfloat16 where hardware rounds, and loses bfloat16's denormals on their way to
# float32, so that there the conversions are integer arithmetic.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def widen(x):
    """Storage to float32, exactly."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Float32 to `dtype`, to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16)
        return tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(dtype)


@triton.jit
def converted(x, dtype: tl.constexpr):
    """`x` as `dtype`: the same bits where it is that already, else one rounding."""
    return x if x.dtype == dtype else narrow(widen(x), dtype)


@triton.jit
def mix(x):
    """The integer hash of `gradalign.backends.rounding`, on uint32."""
    x += 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def stream_key(seed, tensor_index, t):
    """The key of the rounding stream of one tensor in one step; uint32."""
    low = seed.to(tl.uint32)
    high = (seed >> 32).to(tl.uint32)
    return mix(low ^ mix(high ^ mix(tensor_index.to(tl.uint32) ^ mix(t.to(tl.uint32)))))


@triton.jit
def narrow_stochastically(x, key, element):
    """Float32 to bfloat16, up with the probability of the distance from below; `element` is int64."""
    noise = mix(element.to(tl.uint32) ^ mix(key ^ (element >> 32).to(tl.uint32))) & 0xFFFF
    bits = x.to(tl.uint32, bitcast=True)
    rounded = ((bits + noise) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    finite = (bits & 0x7F800000) != 0x7F800000
    return tl.where(finite, rounded, narrow(x, tl.bfloat16))
