"""The Hessian-vector product that finite differences are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch.nn.attention import SDPBackend, sdpa_kernel

from gradalign.engine.double_backward import twice_differentiable
from gradalign.engine.passes import hooks_applied
from gradalign.engine.space import Vector
from gradalign.tuning.differences import Differences, wide_zeros
from gradalign.tuning.richardson import check_uncertainty, extrapolate

MAX_GRADIENT_ERROR = 0.1  # how far the gradient of the differentiable pass may be from that of the plain pass
SUSPICIOUS_ERROR = 0.05  # double backward is checked where every central difference is at least this far from it
TRUSTED_RATIO = 0.2  # an extrapolation replaces it if its uncertainty is below this fraction of their distance and of 1


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


def compute_reference(differences: Differences, method: str, radii: Iterable[float]) -> Reference:
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
    differences: Differences, reference: Reference, best: float, radii: Iterable[float]
) -> Reference | None:
    """An extrapolation where double backward is far from it, and from every difference; else None.

    Double backward treats what a custom backward computed in its forward, or without a graph, as a constant. If that depends
    on the parameters the product is wrong, and nothing raises. Far from every difference alone is no sign of it: the radii may
    be too long.

    Args:
        differences: after its base passes.
        reference: what is checked.
        best: the smallest relative error of a central difference against it.
        radii: of the extrapolation.
    """
    if reference.method != "double_backward" or best < SUSPICIOUS_ERROR:
        return None
    product, uncertainty = extrapolate(differences, radii)
    distance = differences.relative_error(reference.product, product)
    if distance < SUSPICIOUS_ERROR or not uncertainty < TRUSTED_RATIO * min(distance, 1.0):
        return None
    reason = (
        f"it is {distance:.0%} from an extrapolation of central differences: it treats a part of the gradient as a constant "
        "(a custom backward? the power iteration of spectral_norm?)"
    )
    return Reference(product, "richardson", uncertainty, reason)


def double_backward(differences: Differences) -> Reference:
    """H_i x^ = grad (g_i . x^) with x^ constant, through the graph of g_i; attention runs unfused.

    Raises:
        RuntimeError: an operation has no second derivative, or one that is not finite, or computes something else where it is
            twice differentiable.
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
    check_product(differences.norm(product))
    return Reference(product, "double_backward")


def richardson(differences: Differences, radii: Iterable[float], reason: str | None = None) -> Reference:
    """The extrapolation from central differences.

    Raises:
        ValueError: they are 0 or not finite.
    """
    product, uncertainty = extrapolate(differences, radii)
    check_uncertainty(uncertainty)
    return Reference(product, "richardson", uncertainty, reason)


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


def check_product(norm: float) -> None:
    """The product of double backward is finite.

    Raises:
        RuntimeError: its norm is not.
    """
    if not math.isfinite(norm):
        raise RuntimeError(
            f"double backward: expected a finite Hessian-vector product; got norm {norm}; a second derivative "
            "overflows, or does not exist there: use reference='richardson'"
        )
