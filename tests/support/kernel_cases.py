"""Inputs that kernels trip over, and how far a result may be from float64."""

from __future__ import annotations

import functools
import math
from types import ModuleType

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# 1023 to 1025 elements lie around the length of a block, 65,537 is more than a page and prime, 0 and 1 are what loops forget.
SHAPES = ((), (1,), (3,), (0,), (33, 31), (32, 32), (41, 25), (65537,), (257, 255), (2, 3, 5, 7))

LAYOUTS = ("contiguous", "misaligned", "transposed", "strided", "expanded")

# One rounding at the store (half a unit in the last place), and a few in the arithmetic, which is float32 below float64.
# float16 also loses digits below 2^-14: half of its smallest step, 2^-25, absolutely.
ROUNDING = {torch.float64: 2**-53, torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
ARITHMETIC = {
    torch.float64: 4 * 2**-53,
    torch.float32: 4 * 2**-24,
    torch.bfloat16: 4 * 2**-24,
    torch.float16: 4 * 2**-24,
}
FLOOR = {torch.float64: 0.0, torch.float32: 2**-149, torch.bfloat16: 2**-133, torch.float16: 2**-25}
# Sums: reference adds up to 2^17 terms in the type of the arithmetic (equal terms are the worst: all round the same way); the
# others add in float64 what was computed in it.
SUM = {
    "reference": {torch.float64: 1e-13, torch.float32: 2e-4, torch.bfloat16: 2e-4, torch.float16: 2e-4},
    "native": {torch.float64: 1e-13, torch.float32: 2e-7, torch.bfloat16: 2e-7, torch.float16: 2e-7},
}


@functools.lru_cache(maxsize=16)
def drawn(seed: int, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """Random values in float64, to be copied: hundreds of cases start from the same few draws."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The values, laid out so in memory."""
    shape, dtype = values.shape, values.dtype
    if layout == "misaligned":
        base = torch.empty(values.numel() + 1, dtype=dtype)
        return base[1:].view(shape).copy_(values)
    if layout == "transposed":
        return values.movedim(0, -1).contiguous().movedim(-1, 0) if values.ndim else values
    if layout == "strided":
        return torch.stack((values, values), -1)[..., 0] if values.ndim else values
    if layout == "expanded":
        return values[:1].expand(shape) if values.ndim and values.numel() else values
    return values


def tensors(dtype: torch.dtype, layout: str, seed: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    return [laid_out(values.to(dtype, copy=True), layout) for values in drawn(seed, shapes)]


def double(ts: list[Tensor]) -> list[Tensor]:
    return [t.to(torch.float64, copy=True) for t in ts]


def copies(ts: list[Tensor]) -> list[Tensor]:
    """The same values in the same layout, in memory of their own."""
    result = []
    for t in ts:
        base = torch.zeros(sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1 if t.numel() else 0)
        copy = base.to(t.dtype).as_strided(t.shape, t.stride()) if t.numel() else torch.empty_like(t)
        result.append(copy.copy_(t))
    return result


def dot(xs: list[Tensor], ys: list[Tensor]) -> float:
    return math.fsum(float((x.double() * y.double()).sum()) for x, y in zip(xs, ys, strict=True))


def assert_stored(
    actual: list[Tensor], exact: list[Tensor], scale: list[Tensor], arithmetic: float | None = None
) -> None:
    """Each element is `exact`, rounded once, give or take the roundings of the arithmetic on terms as large as `scale`."""
    for i, (a, e, s) in enumerate(zip(actual, exact, scale, strict=True)):
        allowed = ROUNDING[a.dtype] * e.abs() * 1.01 + (arithmetic or ARITHMETIC[a.dtype]) * s.abs() + FLOOR[a.dtype]
        wrong = ((a.double() - e).abs() > allowed).nonzero()
        assert not len(wrong), (
            f"tensor {i}, {tuple(a.shape)}, {a.dtype}: {len(wrong)} wrong, the first at {wrong[0].tolist()}"
        )


def assert_sums(
    backend: ModuleType, dtype: torch.dtype, actual: Tensor, exact: list[float], scale: list[float]
) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == (len(exact),)
    for a, e, s in zip(actual.tolist(), exact, scale, strict=True):
        assert abs(a - e) <= SUM[backend.NAME][dtype] * s
