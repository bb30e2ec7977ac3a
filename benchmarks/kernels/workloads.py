"""The lists of tensors that kernels and steps are measured on."""

from __future__ import annotations

import torch

Shapes = list[tuple[int, ...]]


def bert(hidden: int, num_layers: int) -> Shapes:
    """The shapes of the parameters of BERT: 768 and 12 for base (110M elements), 1024 and 24 for large (335M)."""
    h, wide = hidden, 4 * hidden
    layer = [*[(h, h), (h,)] * 4, *[(h,)] * 2, (wide, h), (wide,), (h, wide), *[(h,)] * 3]
    return [(30522, h), (512, h), (2, h), (h,), (h,), *layer * num_layers, (h, h), (h,)]


def workloads(device_type: str, quick: bool) -> dict[str, Shapes]:
    """Name -> shapes. Small tensors first: the heap that large lists leave behind slows many small allocations by a third."""
    if quick:
        return {"one tensor of 1M": [(1 << 20,)], "20 tensors": [(64, 64)] * 20}
    thousand: Shapes = [(2048,) if i % 2 else (64, 64) for i in range(1000)]
    if device_type == "cpu":
        return {"1,000 tensors": thousand, "BERT-base": bert(768, 12), "one tensor of 64M": [(1 << 26,)]}
    return {
        "1,000 tensors": thousand,
        "BERT-large": bert(1024, 24),
        "one tensor of 64M": [(1 << 26,)],
        "one tensor of 256M": [(1 << 28,)],
    }


class Lists:
    """Parameters and everything of their size, filled with numbers that keep every op in range."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> None:
        self.p, self.backup, self.x, self.g, self.m, self.v = (
            [torch.rand(s, device=device).to(dtype) for s in shapes] for _ in range(6)
        )
        self.steps = [torch.zeros((), device=device) for _ in shapes]
        self.tiny, self.one, self.lr, self.decay = (
            torch.full((), value, dtype=torch.float64, device=device) for value in (1e-7, 1.0, 1e-5, 0.01)
        )
        self.bytes = sum(t.numel() for t in self.p) * dtype.itemsize
