"""What estimators share: a micro-batch compared with a reference by its base pass and its displaced passes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gradalign.engine.passes import Closure, ReplayState
from gradalign.engine.space import Vector
from gradalign.engine.step import Aim, Step
from gradalign.engine.term import Term


def compare(
    step: Step,
    closure: Closure,
    reference: Vector,
    reference_scale: Tensor,
    omega: float,
    term: Term,
    keep: Callable[[Vector, Tensor], None],
    *,
    more: bool = False,
) -> Tensor:
    """term <- term + omega s H_i w_i, the displacement being a combination of the reference and the own gradient.

    Args:
        step: the step in progress.
        closure: computes the loss of the micro-batch.
        reference: sum of (unit) gradients of the micro-batches it is compared with.
        reference_scale: turns that sum into their mean.
        omega: the weight of this micro-batch in the term.
        term: where the Hessian-vector product is added.
        keep: called with the own gradient, and [x.x, x.g, g.g] as stored, while the gradient is still there; the last two are 0
            where the displacement does not contain it.
        more: other displaced passes are added to the term before anything reads it.

    Returns:
        The base loss, detached. The own gradient is freed before the displaced passes.
    """
    start = step.passes.replay_state()
    loss, g = step.passes.isolated_pass(closure)
    end = step.passes.replay_state()
    end.leave_unused([start])
    own = g if step.settings.objective.own else None  # what no displacement contains is not read
    sums = step.space.norm_dot(reference, own, over=step.space.measured)
    _, q = step.displace(step.aim(sums, reference_scale), reference, own)
    keep(g, sums)
    gain = q * omega * step.num
    subtract_base(step, term, g, term.ratio(gain))
    g.clear()
    displaced_passes(step, [closure], [start], term, gain, more=more)
    step.displacement.restore()
    end.put_back()
    return loss


def subtract_base(step: Step, term: Term, g: Vector, ratio: Tensor, *, give: bool = False) -> None:
    """The gradient g at theta leaves the term; with central differences, which do without it, its length is noted.

    `give`: its tensors may become the term's.
    """
    if not step.settings.central:
        term.subtract(g, ratio, give=give)
    elif term.rescaled:
        term.note(step.space.partial_norm_dot(g)[0], ratio)


def displaced_passes(
    step: Step, closures: list[Closure], starts: list[ReplayState], term: Term, gain: Tensor, *, more: bool = False
) -> None:
    """Displaced passes on one side or both: term <- term + gain g(theta + d), or gain / 2 (g(theta + d) - g(theta - d)).

    Each starts from the random numbers and buffers that its base pass started from. `more`: others into the term follow.
    """
    ratio = term.ratio(gain)
    last = -0.5 if step.settings.central else 1.0
    for side in (0.5, -0.5) if step.settings.central else (1.0,):
        if side < 0:
            step.displacement.reflect()
        for i, (closure, start) in enumerate(zip(closures, starts, strict=True), 1):
            start.put_back()
            scaled = ratio if side == 1 else side * ratio
            add_displaced(step, closure, term, scaled, more=more or side != last or i < len(closures))


def add_displaced(step: Step, closure: Closure, term: Term, ratio: float | Tensor, *, more: bool = False) -> Tensor:
    """term <- term + ratio g of one displaced pass; returns its loss.

    Where parameters have hooks, which need not be linear, they see the gradient at ratio 1.
    """
    if not step.hooked:
        return step.passes.displaced_pass(closure, term.vector, ratio, more=more)
    g = step.space.zeros()
    loss = step.passes.displaced_pass(closure, g, 1.0)
    step.space.accumulate(term.vector, g, ratio if isinstance(ratio, Tensor) else step.space.scalar(ratio))
    return loss


def aim_at_others(
    step: Step, total: Vector, g: Vector, part: float = 1.0, scale_x: Tensor | None = None, own: Tensor | None = None
) -> Aim:
    """The displacement of a micro-batch compared with all others, as a combination of the sum over all and its own gradient.

    Args:
        step: the step in progress.
        total: sum of (unit) gradients over all.
        g: the own gradient.
        part: what of g is in the sum, where it is no sum of unit gradients.
        scale_x: what turns a sum over all others into their mean; None: that of k - 1 micro-batches.
        own: what turns g, as it is stored, into the gradient; None: as for a micro-batch.
    """
    sums = step.space.norm_dot(total, g, over=step.space.measured)
    return step.aim(
        sums, step.mean_scale(step.num_everywhere - 1) if scale_x is None else scale_x, own, others=True, part=part
    )
