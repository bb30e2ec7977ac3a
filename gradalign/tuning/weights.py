"""The weights to start from, and the size of the term that they give."""

from __future__ import annotations

from gradalign.engine.comparison import compare
from gradalign.engine.step import Settings
from gradalign.engine.term import Term
from gradalign.objectives import OBJECTIVES
from gradalign.tuning.curve import Point, is_usable
from gradalign.tuning.differences import Differences
from gradalign.tuning.reference import Reference
from gradalign.tuning.result import StartingWeight

# Lengths in parameter space, for normalize="direction", and what they did in the trial that docs/weight.md describes.
STARTING_WEIGHTS = {"dot": 0.001, "norm": 0.03, "variance": 0.03, "cosine": 0.03}
TRIAL = {
    "dot": "-0.1; -0.1",
    "norm": "-0.1; +1.0 +- 0.5",
    "variance": "0.0; +2.3 +- 0.4",
    "cosine": "-1.7 +- 3.4; -1.0 +- 2.5",
}


def starting_weights(differences: Differences, reference: Reference, best: Point) -> dict[str, StartingWeight]:
    """The starting weight of every objective, with the norm of weight * term relative to that of the gradient.

    The size is nan where the gradient is 0, or what it is measured with is not usable.

    Args:
        differences: after its base passes.
        reference: the term of dot and norm, up to its sign.
        best: the radius of the central differences that give the terms of variance and cosine, and their error.
    """
    gradient = differences.mean_gradient_norm()

    def size(objective: str) -> float:
        own = OBJECTIVES[objective].own
        if not gradient or not is_usable(best.central if own else reference.uncertainty or 0.0):
            return float("nan")
        term = own_term_norm(differences, objective, best.radius) if own else differences.norm(reference.product)
        return STARTING_WEIGHTS[objective] * term / gradient

    return {name: StartingWeight(value, size(name), TRIAL[name]) for name, value in STARTING_WEIGHTS.items()}


def own_term_norm(differences: Differences, objective: str, radius: float) -> float:
    """||(1/m) sum_i H_i v_i^|| of an objective whose displacement v_i depends on the probe's own gradient."""
    step = differences.step
    step.settings = Settings(OBJECTIVES[objective], "direction", central=True, radius=radius, telemetry=False)
    sums = differences.unit_sum if OBJECTIVES[objective].unit else differences.anchor_sum
    scale = step.mean_scale(differences.num_anchors)
    term = Term(step.space)
    for closure, start in zip(differences.probes, differences.replay_states, strict=True):
        start.put_back()
        compare(step, closure, sums, scale, 1 / differences.num_probes, term, lambda g, sums: None)
    unit = step.space.one() if term.unit is None else term.unit
    return float(step.space.norm_dot(term.vector)[0].sqrt() * unit.abs() / step.loss_scale)
