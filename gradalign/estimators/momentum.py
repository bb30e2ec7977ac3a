"""`momentum`: every micro-batch is evaluated once, displaced against the running mean of past gradients.

    .grad = mean_i g_i(theta - weight v^) = gbar - weight H v^ + O(weight^2),      v = running mean (norm: minus it)

The alignment of these micro-batches with past ones, at no extra pass: k passes, 2 copies beside plain training, 1 where an
optimizer's first moment is the mean. It is biased by the age of the mean. Nesterov's look-ahead is this with its length tied to
the learning rate; Momentum-SAM (Becker et al. 2024, arXiv:2401.12033) has the opposite sign. Buffers and random numbers move
as in a base pass, and the loss is that of the displaced point.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.engine.displacement import no_writes
from gradalign.engine.estimator import Estimator
from gradalign.engine.memory import Memory
from gradalign.engine.passes import Closure
from gradalign.engine.plain import Plain
from gradalign.engine.schedule import Schedule
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.step import Step
from gradalign.engine.sums import Sums
from gradalign.engine.validation import finite

WRITES = 'its only pass is a displaced one, whose writes are undone; use "split"'


@dataclass(frozen=True)
class Momentum(Estimator):
    """Every micro-batch against the mean of past gradients.

    Attributes:
        decay: of the running mean, in [0, 1): m <- decay m + (1 - decay) g. With `GradAlign(optimizer=...)` the optimizer's
            first moment is used instead, which has its own.

    Raises:
        ValueError: a decay out of range.
        TypeError: a decay that is no number.
    """

    name = "momentum"
    own_direction = False
    normalizations = ("direction",)
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= finite("decay", self.decay) < 1:
            raise ValueError(f"decay: expected a number of at least 0 and below 1; got {self.decay!r}")

    def make(self, step: Step, total: Vector) -> Schedule:
        """k displaced passes."""
        return MomentumSchedule(step, total, past_gradients(step))

    def make_inactive(self, step: Step, total: Vector) -> Schedule:
        """The plain loop, whose gradient is one of the past all the same."""
        return InactiveMomentum(step, total, past_gradients(step))

    def memory(self, optimizer: Any) -> Memory:
        """The optimizer's first moment where there is one, else a mean of our own.

        Raises:
            ValueError: an optimizer without a first moment.
        """
        return RunningMean(self.decay) if optimizer is None else FirstMoment(optimizer)


class PastGradients(Memory):
    """A mean of the gradients of past steps."""

    def follow(self, models: Iterable[nn.Module], trained: Sequence[Parameter]) -> None:
        """Parameters may have been replaced since the last step."""

    @abstractmethod
    def over(self, space: ParamSpace) -> Vector:
        """The mean, for these parameters."""

    @abstractmethod
    def update(self, space: ParamSpace, gradient: Vector, loss_scale: Tensor) -> None:
        """Take in the gradient of a step, which carries the loss scale."""


def past_gradients(step: Step) -> PastGradients:
    """What the aligner of this step remembers."""
    assert isinstance(step.memory, PastGradients)
    step.memory.commit()  # where an interrupt kept the last step from it
    step.memory.follow(step.passes.models, step.space.params)
    return step.memory


class FirstMoment(PastGradients):
    """The first moment of a `gradalign.optim` optimizer, which takes in gradients by itself."""

    def __init__(self, optimizer: Any) -> None:
        if not optimizer.keeps_first_moment:
            name = type(optimizer).__qualname__
            raise ValueError(
                f'optimizer: expected one with a first moment, which estimator "momentum" follows; got {name} '
                "without momentum; give it one, or pass optimizer=None and the mean is kept here"
            )
        self._optimizer = optimizer

    def over(self, space: ParamSpace) -> Vector:
        """The first moments, where they are; a group that maximizes averages -g, of which this is the negative."""
        moments: Vector = [self._optimizer.first_moment(p) for p in space.params]
        groups = self._optimizer.param_groups
        upwards = {id(p) for group in groups if group["maximize"] for p in group["params"]}
        if not upwards:
            return moments
        pairs = zip(moments, space.params, strict=True)
        return [-m if m is not None and id(p) in upwards else m for m, p in pairs]

    def update(self, space: ParamSpace, gradient: Vector, loss_scale: Tensor) -> None:
        """Nothing: the optimizer's own step does it."""

    def state_dict(self, params: Callable[[], Sequence[Parameter]], remembers: bool) -> dict[str, Any]:
        """No mean of our own."""
        return {"mean": []}


class RunningMean(PastGradients):
    """m <- decay m + (1 - decay) g over the steps, uncorrected: only its direction is used."""

    def __init__(self, decay: float = 0.9) -> None:
        self._decay = decay
        self._before: tuple[Vector, Vector, list[Parameter]] | None = None  # of a step that is not complete
        self.mean: Vector = []
        self._params: list[Parameter] = []  # whose mean it is
        # All parameters of the models, after a load that was not used yet: the mean is theirs, in their order.
        self._loaded_for: Callable[[], Sequence[Parameter]] | None = None

    def over(self, space: ParamSpace) -> Vector:
        """The mean for these parameters, where they are; zero for those that it has not seen.

        Raises:
            ValueError: the models have other parameters than those that a mean was loaded for.
        """
        if self._loaded_for is not None:
            owners: Sequence[Parameter] = self._loaded_for()
            _fits(self.mean, owners)
        else:
            owners = self._params
        means = {id(p): m for p, m in zip(owners, self.mean, strict=True)}
        known = [_of_shape(means.get(id(p)), p) for p in space.params]
        # A checkpoint may have been loaded to the CPU.
        self.mean = [m if m is None else m.to(p.device) for m, p in zip(known, space.params, strict=True)]
        self._params, self._loaded_for = space.params, None
        return self.mean

    def update(self, space: ParamSpace, gradient: Vector, loss_scale: Tensor) -> None:
        """Take in a gradient, unless it is not finite: a step that a scaler skips leaves the mean as it is."""
        mean = self.over(space)
        self._before = (mean, [None if m is None else m.clone() for m in mean], self._params)
        usable = space.norm_dot(gradient)[0].isfinite()
        # Of float64 tensors: two numbers alone would be rounded to torch's default dtype.
        keep = torch.where(usable, space.scalar(self._decay), 1.0)
        add = torch.where(usable, space.scalar(1 - self._decay) / loss_scale, 0.0)
        space.combine(mean, mean, mean, keep, space.zero())
        space.accumulate(mean, gradient, add)
        self.mean, self._params = mean, space.params

    def commit(self) -> None:
        """The mean stays as it is."""
        self._before = None

    def roll_back(self) -> None:
        """The mean as before the step."""
        if self._before is None:
            return
        mean, values, params = self._before
        for i, value in enumerate(values):
            current = mean[i]
            mean[i] = value if value is None or current is None else current.copy_(value)
        self.mean, self._params = mean, params
        self._before = None

    def follow(self, models: Iterable[nn.Module], trained: Sequence[Parameter]) -> None:
        """The mean is that of the parameters in their places, where all were replaced."""
        self._params = list(self._owners(trained, lambda: [p for model in models for p in model.parameters()]))

    def _owners(
        self, trained: Sequence[Parameter], everything: Callable[[], Iterable[Parameter]]
    ) -> Sequence[Parameter]:
        """Whose mean it is: where all parameters were replaced (`load_state_dict(assign=True)`), those in their places."""
        owners = self._params
        known = set(map(id, owners))
        if not known.isdisjoint(map(id, trained)) or not known.isdisjoint(map(id, everything())):
            return owners
        return trained if [p.shape for p in trained] == [p.shape for p in owners] else owners

    def state_dict(self, params: Callable[[], Sequence[Parameter]], remembers: bool) -> dict[str, Any]:
        """The mean of every parameter of the models: zeros where it is trained and has none yet, None where it is frozen."""
        if self._loaded_for is not None:
            return {"mean": list(self.mean)}
        if not self.mean and not remembers:
            return {"mean": []}
        everything = params()
        owners = self._owners([p for p in everything if p.requires_grad], lambda: everything)
        means = {id(p): m for p, m in zip(owners, self.mean, strict=True)}
        return {"mean": [_to_save(means.get(id(p)), p) for p in everything]}

    def load_state_dict(self, state: Mapping[str, Any], params: Callable[[], Sequence[Parameter]]) -> None:
        """Go on with a saved mean.

        Raises:
            TypeError: a mean that is no list of tensors.
            ValueError: a mean of other parameters.
        """
        mean = state.get("mean", [])
        if not isinstance(mean, (list, tuple)) or not all(m is None or isinstance(m, Tensor) for m in mean):
            raise TypeError(
                "load_state_dict: expected mean to be a list of tensors, as state_dict() gives it; got another kind"
            )
        mean = [None if m is None else m.clone() for m in mean]
        if mean:
            everything = params()
            trained = [i for i, p in enumerate(everything) if p.requires_grad]
            # Version 0.1.0 saved that of the trained parameters alone.
            if len(mean) == len(trained) < len(everything):
                of_trained = dict(zip(trained, mean, strict=True))
                mean = [of_trained.get(i) for i in range(len(everything))]
            _fits(mean, everything)
        self.mean, self._params, self._loaded_for, self._before = mean, [], params if mean else None, None


def _fits(mean: Vector, params: Sequence[Parameter]) -> None:
    """A loaded mean is one of these parameters."""
    remedy = (
        "load the state of an aligner of the same models (one that an older version saved: with the same parameters frozen), "
        "or leave `mean` out of it and the mean starts anew"
    )
    if len(mean) != len(params):
        trained = sum(p.requires_grad for p in params)
        raise ValueError(
            f"load_state_dict: expected the mean of the {len(params)} parameters of the models, of which {trained} are trained"
            f"; got one of {len(mean)}; {remedy}"
        )
    for m, p in zip(mean, params, strict=True):
        if m is not None and m.shape != p.shape:
            raise ValueError(
                f"load_state_dict: expected the mean of a parameter of shape {tuple(p.shape)}; got {tuple(m.shape)}; {remedy}"
            )


def _to_save(mean: Tensor | None, param: Parameter) -> Tensor | None:
    """The mean of one parameter, as it is saved."""
    if mean is not None and mean.shape == param.shape:
        return mean
    return torch.zeros_like(param) if param.requires_grad else None


def _of_shape(mean: Tensor | None, param: Parameter) -> Tensor | None:
    """The mean of a parameter that still has its shape."""
    if mean is None or mean.shape == param.shape:
        return mean
    warnings.warn(
        f"momentum: expected parameters that keep their shape; got {tuple(mean.shape)}, now {tuple(param.shape)}; the mean of "
        "its past gradients starts anew",
        UserWarning,
        stacklevel=2,
    )
    return None


class InactiveMomentum(Plain):
    """The plain loop of a step without the term; its gradient is remembered."""

    def __init__(self, step: Step, total: Vector, past: PastGradients) -> None:
        super().__init__(step, total)
        self._past = past

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad` and remember it."""
        found = super().finish()
        self._past.update(self.step.space, self._sums.total, self.step.loss_scale)
        return found


class MomentumSchedule(Schedule):
    """One displaced pass a micro-batch, which counts as its base pass."""

    replays = False

    def __init__(self, step: Step, total: Vector, past: PastGradients) -> None:
        super().__init__(step)
        self.sums = Sums(step, total)
        self.past = past
        self.mean = past.over(step.space)

    def run(self, closures: Sequence[Closure]) -> list[Tensor]:
        """Displace once for all."""
        self.displace()
        losses = [self.base_pass(closure) for closure in closures]
        self.step.displacement.restore()
        return losses

    def visit(self, closure: Closure) -> Tensor:
        """Displaced during the pass, at theta in between."""
        if self.num_visited:
            self.step.displacement.step_in()
        else:
            self.displace()
        loss = self.base_pass(closure)
        self.step.displacement.step_out()
        return loss

    def displace(self) -> None:
        """theta <- theta - weight v^."""
        step = self.step
        norm = step.space.norm_dot(self.mean, over=step.space.measured)[0].sqrt()
        sign = step.settings.objective.alpha
        scale = torch.where(norm.isfinite() & (norm > 0), -sign * step.weight / norm, 0.0)
        step.shift(self.mean, scale)

    def base_pass(self, closure: Closure) -> Tensor:
        """The pass of a micro-batch, and its gradient's norm where it is wanted."""
        step = self.step
        with no_writes(step.space.tensors, 'estimator "momentum"', WRITES):
            if self.sums.units is None:
                more = self.num_visited + 1 < step.num
                loss = step.passes.base_pass(closure, self.sums.total, more=more)
            else:
                loss, g = step.passes.isolated_pass(closure)
                self.sums.add(g)
        self.num_visited += 1
        return loss

    def finish(self) -> dict[str, Tensor]:
        """Fill `.grad` and remember it."""
        self.step.displacement.restore()
        self.step.close(self.sums.total, None)
        self.past.update(self.step.space, self.sums.total, self.step.loss_scale)
        return {}
