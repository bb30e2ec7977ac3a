"""What the native ops write, as one number: the same whatever instruction set they run with."""

from __future__ import annotations

import hashlib

import torch

from gradalign.backends import native, signatures
from support.kernel_cases import DTYPES, copies, tensors

SCALE = torch.tensor(0.37, dtype=torch.float64)


def results_digest(isa: str) -> str:
    """Of what the ops write and sum: but not, without a fused multiply-add, the moments of Adam and the sums of doubles."""
    total = hashlib.sha256()
    for dtype in DTYPES:
        for layout in ("contiguous", "transposed"):
            p, b, x, y = (tensors(dtype, layout, seed) for seed in range(4))
            sums = [
                native.norm_dot(x, y),
                native.perturb_(p, b, x, SCALE, y, SCALE),
                native.accumulate_(b, y, SCALE),
                native.combine_(x, p, b, SCALE, SCALE),
            ]
            if dtype == torch.float64:
                sums = []
            m, v, steps = copies(y), [t.abs() for t in y], [torch.zeros(()) for _ in y]
            step = (SCALE, SCALE, SCALE)
            if isa != "portable":
                signatures.call(
                    native, "adamw_step_", p, copies(x), m, v, [], [], steps, *step, beta1=0.9, beta2=0.99, eps=1e-8
                )
            signatures.call(native, "sgd_step_", b, copies(x), m, [], steps, *step, momentum=0.9)
            for t in (*p, *b, *x, *m, *v, *sums):
                total.update(t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
