"""One loss of the first step with the term is evaluated again: a displaced pass must compute the function of its base pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradalign.engine.ignored_labels import no_mean_over_nothing
from gradalign.engine.passes import Passes, Recorded

ULPS = 64  # of the loss, in the dtype of the forward: what nondeterministic kernels may differ by
SHARE_OF_CHANGE = 0.1  # of what the displacement changes the loss by, about radius ||g||

GRADIENT_ULPS = 8192  # of the gradient: what nondeterministic kernels may differ by in the backward, 1e-3 in float32
LEAST_OF_GRADIENT = 1e-7
MOST_OF_GRADIENT = 0.05  # in 16 bits, where as many ulps would be more than all of it

CAUSES = (
    "Usual causes: a module with state that is not among the models (give all: model=[net, criterion]), hidden state or an "
    "iterator outside loss_fn, a torch.Generator of your own, writes through .data, a counter in Python. "
    "docs/troubleshooting.md has remedies; check_replay=False turns this check off"
)
CAUSES_IN_BACKWARD = (
    "Usual cause: a backward with a counter in Python, as the coefficient of a gradient reversal layer that grows with each "
    "forward; move the counter on outside loss_fn, after optimizer.step(), or make it a buffer; check_replay=False turns this "
    "check off"
)


def check_replay(
    passes: Passes, recorded: Recorded, again: Tensor, radius: float, gradient_norm: Tensor | None, share: int
) -> None:
    """A recorded base pass that was evaluated once more, from its random numbers and buffers, gave the same loss.

    Args:
        passes: those of the step; parameters are at theta.
        recorded: the first base pass. State that it left behind has moved on with every pass since.
        again: the loss, evaluated again.
        radius: length of the displacements.
        gradient_norm: of the mean gradient known by now; None: not known.
        share: turns a returned loss into L_i.

    Raises:
        RuntimeError: the loss is another one.
        ValueError: it is NaN because the micro-batch has no label.
    """
    first, second = float(recorded.loss), float(again)
    slope = 0.0 if gradient_norm is None else float(gradient_norm) / share
    allowed = max(SHARE_OF_CHANGE * radius * slope, ULPS * passes.epsilon(recorded) * abs(first))
    usable = math.isfinite(first) and math.isfinite(allowed)
    differs = usable and not abs(second - first) <= allowed
    if not passes.anywhere(differs):
        no_mean_over_nothing(first, getattr(recorded.closure, "micro_batch", None))
        return
    found = f"{first:.8g}, then {second:.8g}" if differs else "another one on another rank"
    raise RuntimeError(
        f"loss_fn: expected the same loss when a micro-batch is evaluated again with the same parameters, random numbers and "
        f"buffers, which the displaced passes rely on; got {found}. {CAUSES}"
    )


def check_gradient(first: Tensor, again: Tensor, epsilon: float) -> None:
    """The same pass gave the same gradient: state that only the backward uses does not show in the loss.

    In 16 bits other state need not show there either: what 64 units in the last place are is half of a loss in bfloat16.

    Args:
        first: sketch of the gradient of the base pass, or of a repetition.
        again: that of another repetition.
        epsilon: relative rounding of the forward.

    Raises:
        RuntimeError: it is another one.
    """
    norm, off = torch.stack((first.norm(), (again - first).norm())).tolist()
    allowed = max(min(GRADIENT_ULPS * epsilon, MOST_OF_GRADIENT), LEAST_OF_GRADIENT)
    if not (math.isfinite(norm) and off > allowed * norm):
        return
    found = f"{off / norm:.2g} times its length" if norm else "any length, where there was none"
    told = f"the same loss, and a gradient that is off by {found}. {CAUSES_IN_BACKWARD}"
    if GRADIENT_ULPS * epsilon > MOST_OF_GRADIENT:
        told = f"one that is off by {found}. {CAUSES}"
    raise RuntimeError(
        "loss_fn: expected the same gradient when a micro-batch is evaluated again with the same parameters, random numbers "
        f"and buffers, which the displaced passes rely on; got {told}"
    )
