"""A small program for compute-sanitizer: every CUDA kernel once, with awkward sizes, layouts and dtypes.

`compute-sanitizer --tool memcheck python -m benchmarks.gpu.driver`. With PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor is an
allocation of its own, so that an access beside it is seen. Prints how many ops ran; the results are tested elsewhere.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from gradalign.backends import native, signatures

SIZES = (1, 3, 255, 1024, 4099, 8192, 8193)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NARROW = (torch.bfloat16, torch.float16)
LAYOUTS = ("contiguous", "misaligned", "strided")


def tensors(dtype: torch.dtype, layout: str, device: str) -> list[Tensor]:
    """One tensor of each size; none of its elements is uninitialised."""
    made = []
    for n in SIZES:
        if layout == "misaligned":
            made.append(torch.full((n + 1,), 0.5, dtype=dtype, device=device)[1:])
        elif layout == "strided":
            # Not dense in any order: tensors that are transposed alike in all lists are swept like flat ones.
            made.append(torch.full((n, 4), 0.5, dtype=dtype, device=device)[:, ::2])
        else:
            made.append(torch.full((n,), 0.5, dtype=dtype, device=device))
    return made


def vector_ops(dtype: torch.dtype, layout: str, device: str) -> int:
    """The ops on lists."""
    p, backups, x, y = (tensors(dtype, layout, device) for _ in range(4))
    half = torch.full((), 0.5, dtype=torch.float64, device=device)
    native.norm_dot(x)
    native.norm_dot(x, y)
    native.perturb_(p, backups, x, half)
    native.swap_(p, backups)
    native.restore_(p, backups)
    native.perturb_(p, backups, x, half, y, half)
    native.perturb_(p, x, x, half)
    native.perturb_(p, backups, x, half, y, half, from_backups=True)
    native.accumulate_(p, y, half)
    native.combine_(p, x, y, half, half)
    return 10


def mixed_ops(dtype: torch.dtype, device: str) -> int:
    """The ops on lists of 16 bits beside wider ones."""
    p, backups, x, y = (tensors(dtype, "contiguous", device) for _ in range(4))
    masters, wide = (tensors(torch.float32, "contiguous", device) for _ in range(2))
    half = torch.full((), 0.5, dtype=torch.float64, device=device)
    native.perturb_(p, backups, wide, half)
    native.perturb_(p, masters, wide, half, from_backups=True)
    native.perturb_(p, masters, x, half, from_backups=True)
    native.perturb_(p, masters, x, half, y, half, from_backups=True)
    native.restore_(p, masters)
    native.accumulate_(wide, x, half)
    native.combine_(p, wide, y, half, half)
    return 7


def scalar_ops(device: str) -> int:
    """The ops on single numbers."""
    sums = torch.ones(3, dtype=torch.float64, device=device)
    one = torch.ones((), dtype=torch.float64, device=device)
    aimed = native.aim(sums, one, one, 0.01, 1.0, 1.0, 1.0, False, True, 1e-12)
    native.reached(sums, aimed, True)
    return 2


def steps(
    dtype: torch.dtype,
    layout: str,
    device: str,
    *,
    wide_state: bool = False,
    masters: bool = False,
    skipped: bool = False,
) -> int:
    """The optimizers; with masters their state is float32 too."""
    wide = torch.float32 if masters or wide_state else dtype
    p, g = (tensors(dtype, layout, device) for _ in range(2))
    m, v, largest, kept = (tensors(wide, layout, device) for _ in range(4))
    counts = [torch.zeros((), device=device) for _ in p]
    one, small = (torch.full((), value, dtype=torch.float64, device=device) for value in (1.0, 0.01))
    skip = torch.full((), float(skipped), device=device)
    seed = torch.full((), 7, dtype=torch.int64, device=device) if dtype == torch.bfloat16 and not masters else None
    own = kept if masters else []
    tail = (counts, one, small, small, skip, seed)
    adam: dict[str, Any] = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "zero_grads": True}
    signatures.call(native, "adamw_step_", p, g, m, v, [], own, *tail, **adam)
    signatures.call(native, "adamw_step_", p, g, m, v, largest, own, *tail, **adam)
    signatures.call(native, "sgd_step_", p, g, m, own, *tail, momentum=0.9)
    signatures.call(native, "sgd_step_", p, g, [], own, *tail)
    signatures.call(native, "lamb_step_", p, g, m, v, own, *tail, **adam)
    return 5


def main() -> int:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    reason = native.why_not_on(device)
    if reason is not None:
        print(f"native kernels on {device}: {reason}", file=sys.stderr)
        return 3
    ran = scalar_ops(device)
    for dtype, layout in itertools.product(DTYPES, LAYOUTS):
        ran += vector_ops(dtype, layout, device)
        ran += steps(dtype, layout, device)
    for dtype in NARROW:
        ran += mixed_ops(dtype, device)
    ran += steps(torch.bfloat16, "contiguous", device, wide_state=True)
    for dtype, skipped in itertools.product(NARROW, (False, True)):
        ran += steps(dtype, "contiguous", device, masters=True, skipped=skipped)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} ops ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
