"""The Hessian-vector product that finite differences are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel

from gradalign.engine.double_backward import twice_differentiable
from gradalign.engine.passes import hooks_applied
from gradalign.engine.space import Vector
from gradalign.tuning.differences import Differences, wide_zeros

MAX_GRADIENT_ERROR = 0.1  # how far the gradient of the differentiable pass may be from that of the plain pass
SUSPICIOUS_ERROR = 0.05  # double backward is checked where every central difference is at least this far from it
TRUSTED_RATIO = (
    0.2  # an extrapolation replaces double backward where its uncertainty is below this fraction of that error
)


@dataclass(frozen=True)
class Reference:
    """The mean over the probes of H_i x^, and how it was computed.

    Attributes:
        product: the vector.
        method: "double_backward" or "richardson".
        uncertainty: of an extrapolation, its relative distance from the next best one; None for double backward.
        reason: why double backward was not used; None where it was, or was not asked for.
    """

    product: Vector
    method: str
    uncertainty: float | None = None
    reason: str | None = None


def compute_reference(differences: Differences, method: str, radii: Sequence[float]) -> Reference:
    """The reference by the requested method; "auto" is double backward if it can run, else an extrapolation."""
    if method == "richardson":
        return richardson(differences, radii)
    try:
        return double_backward(differences)
    except RuntimeError as error:  # the same passes ran without create_graph, so the second derivative failed
        if method == "double_backward":
            raise
        reason = str(error).strip().splitlines()[0]
    return richardson(differences, radii, reason)


def cross_check(
    differences: Differences, reference: Reference, best: float, radii: Sequence[float]
) -> Reference | None:
    """An extrapolation where double backward disagrees with differences that agree with each other, else None.

    Double backward treats what a custom backward computed in its forward, or without a graph, as a constant. If that depends
    on the parameters the product is wrong, and nothing raises.
    """
    if reference.method != "double_backward" or best < SUSPICIOUS_ERROR:
        return None
    reason = (
        f"it is {best:.0%} or more from every central difference, and those agree with each other: it treats a part of the "
        "gradient as a constant (a custom backward? the power iteration of spectral_norm?)"
    )
    other = richardson(differences, radii, reason)
    return other if other.uncertainty is not None and other.uncertainty < TRUSTED_RATIO * best else None


def double_backward(differences: Differences) -> Reference:
    """H_i x^ = grad (g_i . x^) with x^ constant, through the graph of g_i; attention runs unfused.

    Raises:
        RuntimeError: an operation has no second derivative, or computes something else where it is twice differentiable.
    """
    step, passes, space = differences.step, differences.step.passes, differences.step.space
    direction = _direction(differences)
    product, base = wide_zeros(space), wide_zeros(space)
    for closure, start in zip(differences.probes, differences.replay_states, strict=True):
        start.put_back()
        with twice_differentiable("double backward"), sdpa_kernel(SDPBackend.MATH):
            _, graph = passes.differentiable(closure, step.loss_scale)
            space.accumulate(base, hooks_applied(space.params, graph), differences.one)
            hessian = passes.differentiate_again(graph, direction)
        space.accumulate(product, hessian, step.own_scale / differences.num_probes)
    check_same_gradient(differences.relative_error(base, differences.base_sum))
    return Reference(product, "double_backward")


def richardson(differences: Differences, radii: Sequence[float], reason: str | None = None) -> Reference:
    """The extrapolation from neighbouring radii s < r that is closest to the one before it.

        E(r, s) = [r^2 C(s) - s^2 C(r)] / (r^2 - s^2),      C(r) = H x^ + c r^2 + O(r^4) the central difference

    (Richardson 1911). Starting from the largest radius, the distance between successive extrapolations falls with the
    truncation error, of order r^2 s^2, until rounding error dominates. The smallest distance bounds what is left of both.
    """
    space = differences.step.space
    descending = sorted(radii, reverse=True)
    previous, best, uncertainty = None, None, float("inf")
    larger = differences.central(differences.gradients_at(descending[0]))
    for r, s in itertools.pairwise(descending):
        smaller = differences.central(differences.gradients_at(s))
        extrapolated = wide_zeros(space)
        a, b = (space.scalar(x / (r**2 - s**2)) for x in (r**2, -(s**2)))
        space.combine(extrapolated, smaller, larger, a, b)
        if previous is not None and (distance := differences.relative_error(extrapolated, previous)) < uncertainty:
            best, uncertainty = extrapolated, distance
        previous, larger = extrapolated, smaller
    assert best is not None, "the caller gives at least three radii"
    return Reference(best, "richardson", uncertainty, reason)


def _direction(differences: Differences) -> Vector:
    """x^ on the measured parameters, in their dtypes."""
    space = differences.step.space
    measured, factor = set(space.measured), 1 / float(differences.anchor_norm)
    return [
        None if x is None or i not in measured else (x * factor).to(space.params[i].dtype)
        for i, x in enumerate(differences.anchor_sum)
    ]


def check_same_gradient(distance: float) -> None:
    """The differentiable pass has the gradient of the plain pass.

    Raises:
        RuntimeError: their relative distance is above `MAX_GRADIENT_ERROR`.
    """
    if not distance <= MAX_GRADIENT_ERROR:
        raise RuntimeError(
            f"double backward: expected the gradient of the plain pass; got one that differs by {distance:.0%}; unfused "
            "attention may draw other random numbers for dropout: use model.eval() or reference='richardson'"
        )


def extrapolation_radii(radii: Sequence[float], default: Sequence[float]) -> list[float]:
    """The radii of the sweep if there are at least four, else those and the default ones."""
    return sorted(set(radii) if len(set(radii)) >= 4 else set(radii) | set(default))
