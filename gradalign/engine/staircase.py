"""A warning where a loss moves in steps, as float8 or fake quantisation make it, while its gradient pretends that it is smooth.

Where matrix products round their inputs in the forward and the backward takes the rounding for the identity, a displacement
of the length of the radius crosses few steps, and the difference of gradients is mostly noise of which ones. The loss itself
tells: over a length h it changes by something else than h times its derivative. That alone does not say how poor the term
is, since the error of a change of the loss averages over all parameters and that of a difference of gradients does not. So
where the loss is off, the gradients on both sides are compared as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from gradalign.engine.passes import Recorded
from gradalign.engine.space import Vector
from gradalign.engine.step import Step

SHORT = 1 / 30  # of the radius: where the loss is looked at, so short that curvature and kinks do not show
LONGEST_SHORT = 1 / 3  # of the radius
RESOLUTION = 5e-4  # of the change of the loss: the rounding of the loss may be no more than that
TERMS = 1.0  # a small loss is what is left of terms of this size, as cross-entropy's logits, and is rounded as they are
DISPLACED_ULPS = 8  # a displacement is at least so many epsilons of the parameters long, to survive their rounding
# A loss that is further off its derivative moves in steps; those that are smooth, or have kinks, were below.
LEAST_STEPS = 0.01
LEAST_AGREEMENT = 0.7  # of the differences on both sides; the term's cosine with the true one is about as large
LEAST_GAIN = 0.1  # of agreement at a larger radius, else the steps are not what is wrong
FLOAT8 = ("float8", "fp8")  # in the names of classes, torchao's Float8Linear for instance
TRANSFORMER_ENGINE = "transformer_engine."
LARGER = (3.0, 10.0, 30.0)  # radii to try, as multiples


def can_be_seen(step: Step) -> bool:
    """Whether the loss is precise enough: in 16 bits its own rounding is as large as what is looked for.

    Several ranks are left alone, and so are hooks on gradients, which would see more gradients than passes.
    """
    passes = step.passes
    precise = not passes.autocast and torch.finfo(passes.forward_dtype).eps <= torch.finfo(torch.float32).eps
    return precise and _can_be_displaced(step)


def _can_be_displaced(step: Step) -> bool:
    return step.space.ranks is None and not step.hooked and not step.displacement.with_masters


def staircase(step: Step, recorded: Recorded, gradient: Vector) -> str | None:
    """What to warn of where the loss of a recorded base pass moves in steps too high for the radius; None where it does not.

        |(L(theta + h g^) - L(theta - h g^)) / (2 h ||g||) - 1|,      h = radius / 30

    is below `LEAST_STEPS` for smooth losses. Two evaluations and no memory beside the gradient's (and theta's, where parameters
    are pieces of one tensor). Above it, two things are measured, with memory for one gradient more. A loss that follows its
    gradient, kinks and all, is off by no more than the gradient itself changes over that length (3 passes of the micro-batch).
    Where it is, the agreement of the differences on both sides, at the radius and, where that is poor, at larger ones (8 passes
    for each).

    Args:
        step: the step in progress, its parameters at theta.
        recorded: the first base pass.
        gradient: its own, as `Passes.differentiate_recorded` gives it; used up.
    """
    space, radius = step.space, step.radius
    norm = _norm(step, gradient) / step.passes.factor
    loss = abs(float(recorded.loss))
    epsilon = step.passes.epsilon(recorded)
    if not (math.isfinite(norm) and math.isfinite(loss) and norm > 0):
        return None
    length = _norm(step, [p.detach() for p in space.tensors])
    rounding = epsilon * max(loss, TERMS)
    short = max(SHORT * radius, rounding / (norm * RESOLUTION), DISPLACED_ULPS * epsilon * length)
    if short > LONGEST_SHORT * radius:
        return None
    change = _change(step, recorded, gradient, norm, short)
    off = abs(change / (2 * short * norm) - 1)
    if not off > LEAST_STEPS or off <= _combined(step, recorded, short, (1, -1, 0)) / norm:
        return None
    seen = (
        f"one that moves in steps (its change over a short length is {off:.0%} off its derivative), as low-precision compute "
        "with a straight-through gradient makes it (float8 matrix products, fake quantisation)"
    )
    found = _larger_radius(step, recorded, seen)
    return found if found or change or _moves(step, recorded) else unmoved(radius)


def in_16_bits(step: Step, recorded: Recorded) -> str | None:
    """The same where the loss is too coarse to tell: float8 layers are known by their names, and agreement is measured there.

    Memory for two gradients and a copy of the parameters; nothing is done without such layers.
    """
    layer = float8_layer(step.passes.models)
    if layer is None or not _can_be_displaced(step):
        return None
    return _larger_radius(step, recorded, f"one that low-precision compute moves in steps (float8 layers, {layer})")


def float8_layer(models: Iterable[nn.Module]) -> str | None:
    """The class of a layer that computes in float8 by its name, or can, as those of Transformer Engine; None without one."""
    for module in (inner for model in models for inner in model.modules()):
        for cls in type(module).__mro__:
            if any(word in cls.__name__.lower() for word in FLOAT8) or cls.__module__.startswith(TRANSFORMER_ENGINE):
                return type(module).__name__
    return None


def _larger_radius(step: Step, recorded: Recorded, seen: str) -> str | None:
    """The warning, where differences of gradients agree poorly and a larger radius helps."""
    radius = step.radius
    here = _agreement(step, recorded, radius)
    if not here < LEAST_AGREEMENT:
        return None
    best, larger = max((_agreement(step, recorded, radius * factor), radius * factor) for factor in LARGER)
    return message(radius, seen, here, larger, best) if best >= max(here, 0.0) + LEAST_GAIN else None


def _norm(step: Step, vector: Vector) -> float:
    return math.sqrt(float(step.space.norm_dot(vector, over=step.space.measured)[0]))


def _moves(step: Step, recorded: Recorded) -> bool:
    """Whether the loss at one end of the radius along its gradient is another than at the other end."""
    gradient = step.space.zeros()
    step.passes.differentiate_recorded(recorded, gradient)
    return _change(step, recorded, gradient, _norm(step, gradient) / step.passes.factor, step.radius) != 0


def _change(step: Step, recorded: Recorded, gradient: Vector, norm: float, length: float) -> float:
    """L(theta + length g^) - L(theta - length g^); `gradient` is used up."""
    displacement, losses = step.displacement, []
    try:
        displacement.displace_into(gradient, step.space.scalar(length / (norm * step.passes.factor)))
        losses.append(float(step.passes.evaluate_again(recorded)))
        displacement.reflect()
        losses.append(float(step.passes.evaluate_again(recorded)))
    finally:
        displacement.restore()
    return losses[0] - losses[1]


def _agreement(step: Step, recorded: Recorded, radius: float) -> float:
    """How well the differences g(theta + d) - g and g - g(theta - d) agree, d along the gradient.

        (||a + b||^2 - ||a - b||^2) / (||a + b||^2 + ||a - b||^2),      a and b the two differences

    Their cosine where they are as long as each other: 1 where the gradient changes linearly, 0 where it is noise.
    """
    both = _combined(step, recorded, radius, (1, -1, 0)) ** 2
    apart = _combined(step, recorded, radius, (1, 1, -2)) ** 2
    return (both - apart) / (both + apart) if both + apart > 0 else 1.0


def _combined(step: Step, recorded: Recorded, length: float, ratios: tuple[int, int, int]) -> float:
    """Norm of a combination of the gradients at this length ahead along the gradient, as far behind, and here.

    Every backward is one at ratio 1 or -1, for those that are not linear.
    """
    space, displacement, passes = step.space, step.displacement, step.passes
    direction, total = space.zeros(), space.zeros()
    passes.differentiate_recorded(recorded, direction)
    norm = _norm(step, direction)
    try:
        displacement.displace_into(direction, space.scalar(length / norm))
        passes.differentiate_recorded(recorded, total, ratios[0])
        displacement.reflect()
        passes.differentiate_recorded(recorded, total, ratios[1])
    finally:
        displacement.restore()
    for _ in range(-ratios[2]):
        passes.differentiate_recorded(recorded, total, -1)
    return _norm(step, total) / passes.factor


def unmoved(radius: float) -> str:
    """What the warning says where the loss is the same everywhere."""
    return (
        "expected a loss that moves with the parameters; got one that is the same to the last bit at both ends of a "
        f"displacement of length {radius:g} along its own gradient: its value comes from what is detached, as with "
        "exp(logp - logp.detach()), or it moves in steps that are longer; stats.dot, where it is taken from losses, is then "
        "0, and telemetry=True measures it; the term lacks a part of the Hessian: docs/trainers.md, Losses whose value is "
        "detached"
    )


def message(radius: float, seen: str, here: float, larger: float, best: float) -> str:
    """What the warning says."""
    return (
        f"expected a loss that follows its gradient over a displacement of length {radius:g}; got {seen}: differences of "
        f"gradients agree to {here:.2f} on both sides of the parameters, so that most of the term is noise; try "
        f"radius={larger:g}, where they agree to {best:.2f}; gradalign.tune measures which radius is enough"
    )
