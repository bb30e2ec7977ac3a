"""A step in progress, and the two ways it can end: its outcome is committed, or everything is as before."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from gradalign.engine.low_precision import LOW_PRECISION, DisplacementInfo
from gradalign.engine.passes import Closure, LossAloneError, Recorded
from gradalign.engine.replay import BufferState
from gradalign.engine.replay_check import check_gradient, check_replay
from gradalign.engine.schedule import Schedule
from gradalign.engine.sketch import Sketch
from gradalign.engine.space import ParamSpace, Vector, there
from gradalign.engine.staircase import can_be_seen, in_16_bits, staircase
from gradalign.engine.step import Step
from gradalign.engine.validation import callable_
from gradalign.telemetry import AlignmentStats

SHARE_COMPARED = 16  # of the parameters, one in so many
FEW = 1 << 16  # elements that are compared in any case


class Progress(NamedTuple):
    """What a method knows of its steps so far.

    Attributes:
        num_steps: complete ones.
        stats: of the last one.
        casts_to_16_bit: what the graph of a loss showed of autocast; None: none was looked at.
        casts_shown: whether autocast showed without a graph.
        num_aligned: steps with the term that this object has completed.
        inspected: whether a step with the term was looked at closely.
        unreached: positions of the trainable parameters that had no gradient in the last step.
        ranks_compared: the trainable parameters whose gradients ranks compared last.
        labelled: whether a step on several ranks had labels.
    """

    num_steps: int = 0
    stats: AlignmentStats | None = None
    casts_to_16_bit: bool | None = None
    casts_shown: bool = False
    num_aligned: int = 0
    inspected: bool = False
    unreached: tuple[int, ...] = ()
    ranks_compared: Sequence[Parameter] = ()
    labelled: bool = False


class Outcome(NamedTuple):
    """What a complete step leaves behind, beside `.grad`.

    Attributes:
        stats: its statistics.
        progress: the method's, this step included.
        displacement: what it displaced.
        rounded: the parameters that are the rounding of their optimizer's masters again.
        doubt: what the user is warned of.
    """

    stats: AlignmentStats
    progress: Progress
    displacement: DisplacementInfo
    rounded: Sequence[Parameter]
    doubt: str | None = None


class OpenStep:
    """A step in progress.

    Args:
        step: what its passes share.
        schedule: its passes.
        buffers: the models' buffers before it.
        progress: the method's, before it.
    """

    def __init__(self, step: Step, schedule: Schedule, buffers: BufferState, progress: Progress) -> None:
        self._buffers: BufferState | None = buffers
        self.step = step
        self.schedule = schedule
        self.passes = step.passes
        self.progress = progress
        self.rolled_back = False
        self.looks_at_ranks = False
        self.labelled = False
        self.doubt: str | None = None
        self.to_compare: Mapping[str, object] = {}
        self.compared: list[int] | None = None  # the parameters that `_compared` chose; None: all

    def begin(self) -> None:
        """What comes before the first pass."""
        ranks = self.step.space.ranks
        if self.passes.records and _is_differentiated_alone(self.step):
            self.compared = _compared(self.step)
            self.passes.describe = partial(_sketch, self.step.space, self.compared)
        if ranks is not None:
            if self.to_compare:
                ranks.same_request(self.to_compare, self.step.space.home)
            ranks.begin(self.step.active)

    def complete(self, losses: Sequence[Tensor]) -> Outcome:
        """Fill `.grad`.

        Args:
            losses: those of the base passes, detached.
        """
        step, before = self.step, self.progress
        if self.passes.recorded is not None:
            self.check_replay(step.gradient_norm)
        stats = step.stats(losses, self.schedule.finish())
        grads = step.space.grads()
        if all(g is None for g in grads):
            raise ValueError(
                "loss_fn: expected a loss of the model's parameters; got one that reaches none of them; call the module that "
                "was given, and pass all modules that are trained"
            )
        self.passes.no_trained_written(grads)
        if step.space.ranks is not None:
            if self.looks_at_ranks:
                step.space.ranks.same_everywhere(step.space.params, grads, step.space.home)
            step.space.ranks.end(complete=True)
        progress = before._replace(
            num_steps=before.num_steps + 1,
            stats=stats,
            casts_to_16_bit=self.passes.casts_to_16_bit,
            casts_shown=self.passes.casts_shown or (before.casts_shown and not self.passes.watches_autocast),
            num_aligned=before.num_aligned + step.active,
            inspected=before.inspected or step.active,
            unreached=() if all(map(there, grads)) else tuple(i for i, g in enumerate(grads) if g is None),
            ranks_compared=step.space.params if self.looks_at_ranks else before.ranks_compared,
            labelled=before.labelled or self.labelled,
        )
        return Outcome(stats, progress, self._displacement(stats), step.displacement.rounded(), self.doubt)

    def check_replay(self, gradient_norm: Tensor | None) -> None:
        """Where a base pass was recorded and not looked at yet: evaluate it again, there and beside theta.

        Args:
            gradient_norm: of the mean gradient known by now.

        Raises:
            RuntimeError: the loss is another one.
        """
        step, passes, recorded = self.step, self.passes, self.passes.take_recorded()
        if recorded is None:
            return
        first, seen = recorded.gradient, can_be_seen(step)
        again, gradient = self._once_more(recorded)
        check_replay(passes, recorded, again, step.radius, gradient_norm, step.loss_share)
        if gradient is not None and passes.describe is not None:
            sketch = passes.describe(gradient)
            if not seen:
                gradient = None
                if first is None:  # somebody else differentiated: two repetitions are compared
                    _, other = self._once_more(recorded)
                    first = None if other is None else passes.describe(other)
            if first is not None:
                check_gradient(first, sketch, passes.epsilon(recorded))
        try:
            if gradient is not None:
                self.doubt = staircase(step, recorded, gradient)
            elif passes.autocast or passes.forward_dtype in LOW_PRECISION:
                self.doubt = in_16_bits(step, recorded)
        except LossAloneError:  # which leaves nothing to warn of
            pass

    def _once_more(self, recorded: Recorded) -> tuple[Tensor, Vector | None]:
        """The loss of a recorded base pass, evaluated again, and its own gradient where that can be told."""
        if _is_differentiated_alone(self.step):
            gradient = self.step.space.zeros()
            try:
                return self.passes.differentiate_recorded(recorded, gradient, among=self.compared), gradient
            except LossAloneError:
                pass
        return self.passes.evaluate_again(recorded), None

    def check_replay_now(self) -> None:
        """The same while control is about to go to the caller, whose closure may mean another micro-batch afterwards."""
        step = self.step
        if self.passes.recorded is not None:
            self.check_replay(step.space.norm_dot(step.space.grads())[0].sqrt() * step.own_scale)

    def abort(self) -> None:
        """Parameters and buffers as before the step, `.grad` None; may be called again after an interrupt."""
        self.step.displacement.restore()
        self.step.memory.roll_back()
        self.step.space.set_grads(None)
        self.passes.forget()
        if self.step.space.ranks is not None:
            self.step.space.ranks.end(complete=False)
        if self._buffers is not None:
            self._buffers.put_back()

    def keep_buffers(self) -> None:
        """Leave buffers as they are: somebody wrote the parameters, as a checkpoint does, and may have written both."""
        self._buffers = None

    def fingerprint(self) -> Fingerprint:
        """`.grad` and parameters as they are now."""
        space = self.step.space
        grads, params = space.grads(), space.tensors
        held = grads if space.ranks is None else space.ranks.local(grads)
        return Fingerprint(grads, [None if g is None else g._version for g in held], [p._version for p in params])

    def _displacement(self, stats: AlignmentStats) -> DisplacementInfo:
        step = self.step
        return DisplacementInfo(stats.radius, step.space.measured_dtypes, step.displacement.with_masters)


def _compared(step: Step) -> list[int] | None:
    """The parameters whose gradient is compared; None: all.

    Where masters are, there is no backup in whose place the gradient would be: a part of it says enough.
    """
    if not step.displacement.with_masters:
        return None
    sizes = [p.numel() for p in step.space.params]
    left = max(sum(sizes) // SHARE_COMPARED, FEW)
    chosen = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        if sizes[i] <= left:
            chosen.append(i)
            left -= sizes[i]
    return chosen


def _sketch(space: ParamSpace, compared: list[int] | None, gradient: Vector) -> Tensor:
    """A gradient in a few numbers.

    No method of a step: passes that hold the step would keep its memory until the garbage collector comes.
    """
    if compared is not None:
        chosen = set(compared)
        gradient = [g if i in chosen else None for i, g in enumerate(gradient)]
    return Sketch(space).of(gradient)


def _is_differentiated_alone(step: Step) -> bool:
    """Whether a backward of its own tells nobody else: other ranks, or hooks on gradients, which would see more of them."""
    return step.space.ranks is None and not step.hooked


class Fingerprint(NamedTuple):
    """Which `.grad` there were, and the versions of parameters and gradients, when control went to the caller."""

    grads: Vector
    grad_versions: list[int | None]
    param_versions: list[int]

    def check(self, now: Fingerprint) -> None:
        """Nobody wrote parameters or gradients since.

        Raises:
            RuntimeError: says which of the two.
        """
        same = all(map(operator.is_, self.grads, now.grads)) and self.grad_versions == now.grad_versions
        changed = [".grad"] * (not same) + ["parameters"] * (self.param_versions != now.param_versions)
        if changed:
            raise RuntimeError(
                f"accumulate: expected .grad and parameters to be left alone between the micro-batches of a step; got changed "
                f"{' and '.join(changed)}; clip, step and zero_grad after the `with` block, and call no other backward in it"
            )


NOTHING = Fingerprint([], [], [])


@dataclass(frozen=True)
class Lifecycle:
    """How the steps of a method begin and end.

    Attributes:
        begin: checks what can be checked before anything is touched.
        commit: takes in the outcome of a complete step, and returns its last argument.
        roll_back: sets the method, and all that the step touched, to what was before it; the second argument is whether
            gradients were enabled then.
    """

    begin: Callable[[], OpenStep]
    commit: Callable[[OpenStep, Outcome, Any], Any]
    roll_back: Callable[[OpenStep | None, bool], None]


class Accumulation:
    """A step that is given one micro-batch at a time; made by `GradAlign.accumulate`."""

    def __init__(self, lifecycle: Lifecycle, k: int) -> None:
        self._lifecycle = lifecycle
        self._k = k
        self._open: OpenStep | None = None
        self._grad_enabled = True
        self._fingerprint = NOTHING
        self._losses: list[Tensor] = []

    def __enter__(self) -> Accumulation:
        self._grad_enabled, self._losses = torch.is_grad_enabled(), []
        try:
            self._open = step = self._lifecycle.begin()
            step.begin()
            self._fingerprint = step.fingerprint()
            return self
        except BaseException:
            self._fail(self._open)
            raise

    def backward(self, closure: Closure) -> Any:
        """All passes of the next micro-batch; the last of the k fills `.grad`.

        Args:
            closure: computes its scalar loss, with a graph; called twice for a probe.

        Returns:
            The loss of the base pass, detached; with has_aux (loss, aux).

        Raises:
            RuntimeError: outside the `with` block, after a failed call, or after parameters or `.grad` were written in between.
            ValueError: more than k calls, or a loss that is not a scalar with a graph.
        """
        step = self._open
        if step is None:
            raise RuntimeError(
                "expected a call inside `with aligner.accumulate(k)`; got one outside, or after a failed one"
            )
        if len(self._losses) == self._k:
            raise ValueError(f"expected k = {self._k} calls of step.backward; got one more; begin a step for every k")
        callable_("closure", closure, "lambda: loss_fn(micro_batch)")
        try:
            try:
                loss = self._visit(step, closure)
                loss = loss.clone()  # the caller may add the next one to it in place
                result = (loss, step.passes.aux[-1]) if step.passes.has_aux else loss
                if len(self._losses) < self._k:
                    return result
                return self._lifecycle.commit(step, step.complete(self._losses), result)
            except BaseException:
                self._fail(step)
                raise
        except BaseException:  # once more, in case an interrupt came while the step was rolled back
            self._fail(step)
            raise

    def _visit(self, step: OpenStep, closure: Closure) -> Tensor:
        """The passes of a micro-batch."""
        self._check_untouched(step)
        loss = step.schedule.visit(closure)
        step.check_replay_now()
        self._losses.append(loss)
        self._fingerprint = step.fingerprint()
        return loss

    def _check_untouched(self, step: OpenStep) -> None:
        """Nobody wrote parameters or gradients since the last visit, whose fingerprint is let go: it holds a gradient."""
        before, self._fingerprint = self._fingerprint, NOTHING
        if before is NOTHING:  # called from within a closure
            return
        now = step.fingerprint()
        if now.param_versions != before.param_versions:
            step.keep_buffers()
        before.check(now)

    def _fail(self, step: OpenStep | None) -> None:
        """Everything as before the step."""
        self._lifecycle.roll_back(step, self._grad_enabled)
        self._open, self._losses = None, []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        step, self._open = self._open, None
        if len(self._losses) == self._k:
            return
        try:
            self._lifecycle.roll_back(step, self._grad_enabled)
        finally:  # once more, in case of an interrupt
            self._lifecycle.roll_back(step, self._grad_enabled)
        if kind is None:
            raise ValueError(f"expected k = {self._k} calls of step.backward; got {len(self._losses)}; .grad is None")
