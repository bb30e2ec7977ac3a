"""The numbers of a displacement in plain torch: a dozen operations on 0-dim tensors, on the device and never read back.

The native backend computes the same in one call (`csrc/math/displacement.h`), but for the last bit of torch's square roots.
"""

from __future__ import annotations

import torch
from torch import Tensor


def aim(
    sums: Tensor,
    scale_x: Tensor,
    own: Tensor,
    radius: float,
    alpha: float,
    beta: float,
    part: float,
    unit: bool,
    others: bool,
    rounding: float,
) -> Tensor:
    """The displacement d = scale_x x + scale_y g = eps v, v = alpha x + beta g, of length `radius`.

    Args:
        sums: [x.x, x.g, g.g] of the reference x and the own gradient g as they are stored; float64, as all that follow.
        scale_x: what turns the stored reference into the mean of (unit) gradients; 0-dim.
        own: what turns the stored own gradient into itself; 0-dim.
        radius: the length.
        alpha: the factor of x, where it is a constant.
        beta: the factor of g, where it is a constant.
        part: what of g is in x, with `others`, where x is no sum of unit gradients.
        unit: x is a mean of unit gradients, and v = (x - (x . g^) g^) / ||g||.
        others: x is the sum over all micro-batches, and g is to be compared with all others.
        rounding: v counts as 0 where ||v||^2 is no more than this share of the sum of squares of what cancels in it: identical
            micro-batches leave rounding, which would be displaced by the whole radius.

    Returns:
        [scale_x, scale_y, eps, ||v||, norm of the mean, or with `unit` of the own, gradient]; the first three are 0 where ||v||
        is 0 or not finite.
    """
    xx, xg, gg = sums.unbind()
    share: Tensor | None = None
    parts = xx
    if others:
        share = inverse_length(gg) if unit else torch.full_like(gg, part)
        parts = xx + share**2 * gg
        xx, xg = parts - 2 * share * xg, xg - share * gg
    factor = scale_x**2
    xx, xg, gg, parts = xx * factor, xg * scale_x * own, gg * own**2, parts * factor
    a, b = (1 / gg.sqrt(), -xg / gg.sqrt() ** 3) if unit else (torch.full_like(xx, alpha), torch.full_like(xx, beta))
    own_part = b**2 * gg
    square = a**2 * xx + 2 * a * b * xg + own_part
    norm = torch.where(square <= rounding * (a**2 * parts + own_part), 0.0, square).sqrt()
    usable = norm.isfinite() & (norm > 0)
    eps = radius / norm
    eps, first, second = (torch.where(usable, value, 0.0) for value in (eps, eps * a * scale_x, eps * b * own))
    if share is not None:
        second = second - first * share
    return torch.stack((first, second, eps, norm, (gg if unit else xx).sqrt()))


def reached(sums: Tensor, aimed: Tensor, direction: bool) -> Tensor:
    """What a displacement d that was made as delta gives.

    Args:
        sums: [delta.d, d.d, delta.delta], float64.
        aimed: what `aim` returned.
        direction: w is of length 1, else v.

    Returns:
        [eps, the achieved one; q with H w s ~ q (gradient there - gradient here), the normalisation's s and w; cosine between d
        and delta].
    """
    delta_d, d_d, delta_delta = sums.unbind()
    eps = torch.where(d_d > 0, aimed[2] * delta_d / d_d, 0.0)
    q = 1 / (delta_d / d_d.sqrt()) if direction else 2 / eps
    return torch.stack((eps, torch.where(delta_d > 0, q, 0.0), cosine(delta_d, d_d, delta_delta)))


def inverse_length(square: Tensor) -> Tensor:
    """What scales a vector to length 1, from the square of its length; 0 for the zero vector."""
    return torch.where(square > 0, square.rsqrt(), 0.0)


def cosine(delta_d: Tensor, d_d: Tensor, delta_delta: Tensor) -> Tensor:
    """Between displacements asked for and made; 1 where none was asked for."""
    return torch.where(d_d > 0, delta_d / (d_d * delta_delta).sqrt(), 1.0).nan_to_num(0.0)
