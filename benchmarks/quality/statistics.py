"""Paired statistics over seeds: bootstrap intervals, sign-flip tests, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

RESAMPLES = 10_000
EXACT = 24  # up to this many pairs all flips of signs are taken
NORMAL = NormalDist()


def bootstrap(differences: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The BCa interval of the mean: bias-corrected and accelerated, from `RESAMPLES` resamples.

    Efron 1987. Where all differences are equal it is that point.

    Args:
        differences: one a pair.
        level: of the interval.
        seed: of the resamples.
    """
    return _bootstrap(tuple(differences), level, seed)


@cache
def _bootstrap(differences: tuple[float, ...], level: float, seed: int) -> tuple[float, float]:
    x = torch.tensor(differences, dtype=torch.float64)
    means = x[_draws(len(x), seed)].mean(1).sort().values
    if means[0] == means[-1]:
        return float(x.mean()), float(x.mean())
    below = (float((means < x.mean()).sum()) + 0.5 * float((means == x.mean()).sum())) / RESAMPLES
    bias = NORMAL.inv_cdf(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    acceleration = _acceleration(x)
    low, high = (_quantile(means, _adjusted(bias, acceleration, p)) for p in ((1 - level) / 2, (1 + level) / 2))
    return low, high


@lru_cache(maxsize=8)
def _draws(n: int, seed: int) -> Tensor:
    """The places that each resample takes."""
    return torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))


def _acceleration(x: Tensor) -> float:
    """sum u^3 / (6 (sum u^2)^1.5), u the deviations of the jackknife means with their sign turned."""
    u = (x - x.mean()) / (len(x) - 1)
    return float(u.pow(3).sum() / (6 * u.square().sum().pow(1.5)))


def _adjusted(bias: float, acceleration: float, p: float) -> float:
    z = bias + NORMAL.inv_cdf(p)
    return NORMAL.cdf(bias + z / (1 - acceleration * z))


def _quantile(ordered: Tensor, p: float) -> float:
    """torch.quantile of what is in order already: it would sort again."""
    place = min(max(p, 0.0), 1.0) * (len(ordered) - 1)
    below = int(place)
    return float(torch.lerp(ordered[below], ordered[min(below + 1, len(ordered) - 1)], place - below))


def sign_flip(differences: Sequence[float], seed: int = 0) -> float:
    """The two-sided p of a mean as far from 0 when every difference has a random sign.

    All flips up to `EXACT` pairs, else `RESAMPLES` random ones and the one observed.
    """
    return _sign_flip(tuple(differences), seed)


@cache
def _sign_flip(differences: tuple[float, ...], seed: int) -> float:
    x = torch.tensor(differences, dtype=torch.float64)
    far = float(x.sum().abs()) - len(x) * 1e-12
    if len(x) > EXACT:
        return float(((_drawn_signs(len(x), seed) @ x).abs() >= far).double().mean())
    return _share_of_all(x, far) if far > 0 else 1.0


def _share_of_all(x: Tensor, far: float) -> float:
    """Of all sums of x with its signs flipped, the share of those at least this far from 0, a number above 0.

    Each is a sum over one half of x and one over the other: of the second halves, in order, a search counts those that are
    enough for a first one. There are as many sums below -far as above far.
    """
    first, second = (_all_signs(len(half)) @ half for half in x.tensor_split(2))
    enough = len(second) - torch.searchsorted(second.sort().values, far - first)
    return 2 * int(enough.sum()) / (len(first) * len(second))


@lru_cache
def _all_signs(n: int) -> Tensor:
    """(2^n, n) of +-1."""
    return 1.0 - 2.0 * ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double()


@lru_cache(maxsize=8)
def _drawn_signs(n: int, seed: int) -> Tensor:
    """(flips, n) of +-1, those observed first."""
    drawn = torch.randint(2, (RESAMPLES, n), generator=torch.Generator().manual_seed(seed))
    return torch.cat([torch.ones(1, n, dtype=torch.float64), 1.0 - 2.0 * drawn.double()])


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the same order: max over smaller ones of (m - rank) p, at most 1."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted
