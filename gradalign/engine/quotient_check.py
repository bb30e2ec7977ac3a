"""A warning where the loss does not follow its gradient over the length of a displacement: compute in few bits.

Float8 training, or fake quantisation with a straight-through gradient, has a gradient that is that of a smooth function and a
loss that is a staircase. Parameters then represent the displacement, and the difference of the gradients is still wrong.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

LEAST_COSINE = 0.2  # between g and v: below it the curvature may outweigh the slope
SHARE = 1 / 3  # of the slope; bf16 weights are up to 26% off
ULPS = 64  # of the loss: a change below it is rounding
FACTOR = 10  # of the radius to try


def check_quotient(
    change: Tensor, predicted: Tensor, cosine: Tensor, loss: Tensor, radius: float, stacklevel: int
) -> bool:
    """Warn where (L(theta + d) - L(theta)) / (g . d) is more than a third off 1, with d = eps v; one read from the device.

    It says nothing where |g . v| <= 0.2 ||g|| ||v||, which is always so for the cosine objective, or where the change is lost
    in the rounding of the loss. It is blind to few bits where other parameters carry most of the slope.

    Args:
        change: L(theta + d) - L(theta) of one micro-batch, 0-dim.
        predicted: g . d of the same micro-batch.
        cosine: of g and d.
        loss: L(theta).
        radius: length of d.
        stacklevel: of the frame that the warning names, counted from the caller (1).

    Returns:
        Whether it warned.
    """
    numbers = torch.stack([t.detach().double() for t in (change, predicted, cosine, loss)]).tolist()
    actual, expected, alignment, level = numbers
    resolution = ULPS * torch.finfo(loss.dtype).eps * abs(level)
    if not all(map(math.isfinite, numbers)) or abs(alignment) <= LEAST_COSINE or abs(expected) <= resolution:
        return False
    if abs(actual / expected - 1) <= SHARE:
        return False
    warnings.warn(
        f"expected a loss that changes by about {expected:.3g} over a displacement of length {radius:g}, as its gradient says; "
        f"got {actual:.3g}: a forward in low precision (float8, fake quantisation) that the displacement does not reach, or a "
        f"radius at which the loss is far from linear; try radius={FACTOR * radius:g} in low precision, or measure one with "
        "gradalign.tune",
        UserWarning,
        stacklevel=stacklevel + 1,
    )
    return True
