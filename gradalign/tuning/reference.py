"""The Hessian-vector product that finite differences are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel

from gradalign.engine import validation
from gradalign.engine.double_backward import twice_differentiable
from gradalign.engine.space import Vector
from gradalign.tuning.differences import Differences, wide_zeros

SAME_FUNCTION = 0.1  # how far the gradient of the differentiable pass may be from that of the plain one
SUSPICIOUS = 0.05  # central differences that all are this far from double backward are looked into
TRUSTED = 0.2  # of extrapolations that are this much closer to each other than to double backward


@dataclass(frozen=True)
class Reference:
    """The mean over the probes of H_i x^, and where it is from.

    Attributes:
        product: the vector.
        method: "double_backward" or "richardson".
        uncertainty: of an extrapolation, its relative distance from the next best; None for double backward.
        reason: why it is not by double backward; None where it is, or was not asked for.
    """

    product: Vector
    method: str
    uncertainty: float | None = None
    reason: str | None = None


def find(differences: Differences, method: str, radii: Sequence[float]) -> Reference:
    """The reference by the method asked for; "auto": double backward if it can run, else extrapolation."""
    if method == "richardson":
        return richardson(differences, radii)
    try:
        return double_backward(differences)
    except RuntimeError as error:  # the same passes ran without create_graph: it is the second derivative that cannot
        if method == "double_backward":
            raise
        reason = str(error).strip().splitlines()[0]
    return richardson(differences, radii, reason)


def second_opinion(
    differences: Differences, reference: Reference, best: float, radii: Sequence[float]
) -> Reference | None:
    """An extrapolation, where double backward disagrees with differences that agree among each other.

    What a custom backward computed in its forward, or without a graph, is a constant to double backward, though it depends on
    the parameters, and no error tells.
    """
    if reference.method != "double_backward" or best < SUSPICIOUS:
        return None
    reason = (
        f"it is {best:.0%} or more from every central difference, and those agree with each other: it takes a part of the "
        "gradient for a constant (a custom backward? spectral_norm's power iteration?)"
    )
    other = richardson(differences, radii, reason)
    return other if other.uncertainty is not None and other.uncertainty < TRUSTED * best else None


def double_backward(differences: Differences) -> Reference:
    """H_i x^ = grad (g_i . x^), x^ constant, through the graph of g_i; attention runs unfused.

    Raises:
        RuntimeError: an operation without a second derivative, or one that computes something else when it is differentiable.
    """
    step, passes, space = differences.step, differences.step.passes, differences.step.space
    direction = _direction(differences)
    product, base = wide_zeros(space), wide_zeros(space)
    for closure, start in zip(differences.probes, differences.starts, strict=True):
        start.put_back()
        with twice_differentiable("double backward"), sdpa_kernel(SDPBackend.MATH):
            _, graph = passes.differentiable(closure, step.loss_scale)
            space.accumulate(base, [None if g is None else g.detach() for g in graph], differences.one)
            hessian = passes.differentiate_again(graph, direction)
        space.accumulate(product, hessian, step.own_scale / differences.m)
    validation.same_function(differences.apart(base, differences.base), SAME_FUNCTION)
    return Reference(product, "double_backward")


def richardson(differences: Differences, radii: Sequence[float], reason: str | None = None) -> Reference:
    """Of the extrapolations of neighbouring radii s < r, one of the two that are closest to each other.

        E(r, s) = [r^2 C(s) - s^2 C(r)] / (r^2 - s^2),      C(r) = H x^ + c r^2 + O(r^4) the central difference

    (Richardson 1911.) Down from the largest radius their distance falls with the truncation error, r^2 s^2, until rounding
    takes over; the closest two bound what is left of both.
    """
    space = differences.step.space
    descending = sorted(radii, reverse=True)
    before, best, least = None, None, float("inf")
    larger = differences.central(differences.at(descending[0]))
    for r, s in itertools.pairwise(descending):
        smaller = differences.central(differences.at(s))
        extrapolated = wide_zeros(space)
        a, b = (space.scalar(x / (r**2 - s**2)) for x in (r**2, -(s**2)))
        space.combine(extrapolated, smaller, larger, a, b)
        if before is not None and (distance := differences.apart(extrapolated, before)) < least:
            best, least = extrapolated, distance
        before, larger = extrapolated, smaller
    assert best is not None, "the caller gives at least three radii"
    return Reference(best, "richardson", least, reason)


def _direction(differences: Differences) -> Vector:
    """x^ on the measured parameters, in their dtypes."""
    space = differences.step.space
    measured, factor = set(space.measured), 1 / float(differences.norm)
    return [
        None if x is None or i not in measured else (x * factor).to(space.params[i].dtype)
        for i, x in enumerate(differences.anchors)
    ]


def ladder(radii: Sequence[float], default: Sequence[float]) -> list[float]:
    """Radii for an extrapolation: those of the sweep if they are at least four, else the default ones too."""
    return sorted(set(radii) if len(set(radii)) >= 4 else set(radii) | set(default))


__all__ = ["Reference", "double_backward", "find", "ladder", "richardson", "second_opinion"]
