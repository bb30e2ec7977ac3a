"""A weight to start from, and how large it makes the term."""

from __future__ import annotations

from gradalign.engine.comparison import compare
from gradalign.engine.step import Settings
from gradalign.engine.term import Term
from gradalign.objectives import OBJECTIVES
from gradalign.tuning.differences import Differences
from gradalign.tuning.reference import Reference
from gradalign.tuning.result import StartingWeight

# With normalize="direction": lengths in parameter space. DESIGN's trial: BERT-tiny on Rotten Tomatoes, 1,500 snippets, k = 8,
# m = 2, 150 steps, warm-up 30, clip 1, 5 paired seeds. cosine was not in it: the weight of variance, by analogy.
STARTING_WEIGHTS = {"dot": 0.001, "norm": 0.03, "variance": 0.03, "cosine": 0.03}
UNTESTED = frozenset({"cosine"})


def starting_weights(differences: Differences, reference: Reference, radius: float) -> dict[str, StartingWeight]:
    """The starting weight of every objective, with the size of weight * term against the gradient.

    Args:
        differences: after its base passes.
        reference: the term of dot and norm (but for the sign).
        radius: for the central differences that give the terms of variance and cosine.
    """
    gradient = differences.mean_gradient_norm()
    shared = float(differences.step.space.norm_dot(reference.product)[0].sqrt())

    def size(objective: str) -> float:
        term = own_term_norm(differences, objective, radius) if OBJECTIVES[objective].own else shared
        return STARTING_WEIGHTS[objective] * term / gradient if gradient else float("nan")

    return {name: StartingWeight(value, size(name), name not in UNTESTED) for name, value in STARTING_WEIGHTS.items()}


def own_term_norm(differences: Differences, objective: str, radius: float) -> float:
    """||(1/m) sum_i H_i v_i^|| of an objective whose displacement contains the probe's own gradient."""
    step = differences.step
    step.settings = Settings(OBJECTIVES[objective], "direction", central=True, radius=radius, telemetry=False)
    sums = differences.units if OBJECTIVES[objective].unit else differences.anchors
    scale = step.mean_scale(differences.num_anchors)
    term = Term(step.space)
    for closure, start in zip(differences.probes, differences.starts, strict=True):
        start.put_back()
        compare(step, closure, sums, scale, 1 / differences.m, term, lambda g, sums: None)
    unit = step.space.scalar(1.0) if term.unit is None else term.unit
    return float(step.space.norm_dot(term.vector)[0].sqrt() * unit.abs() / step.loss_scale)
