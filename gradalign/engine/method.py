"""What every way of filling `.grad` shares: one call in place of `loss.backward()`, and the promises it keeps."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.batches import shallow_copy
from gradalign.engine import validation
from gradalign.engine.addresses import ParamMemory
from gradalign.engine.graph import GraphInfo
from gradalign.engine.low_precision import DisplacementInfo, DisplacementWatch
from gradalign.engine.passes import Closure, Passes
from gradalign.engine.replay import Buffers, BufferState
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.weight import ONE, Weight
from gradalign.estimators import Plain, Schedule, Settings, Step
from gradalign.telemetry import AlignmentStats

REDUCTIONS = ("mean", "sum")


class Method(ABC):
    """Fills `.grad` from the micro-batches of a step.

    `GradAlign` and every baseline are methods, so that any two can be swapped. A subclass says which schedule of passes runs
    (`_schedule`). Parameters come back bit for bit after every step; after any exception
    parameters and buffers are as before and `.grad` is None; what a pass at other parameters than theta does to buffers
    and random streams leaves no trace.

    Args:
        model: the module, or several, whose parameters are trained and whose buffers displaced passes leave alone.
        settings: what the schedules need to know.
        weight: of the term; a step with 0 is the plain accumulation loop.
        params: the parameters that are displaced; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry, and add to it.
        backend: what runs the kernels.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        settings: Settings,
        weight: Weight = ONE,
        *,
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        zeroed_grads: bool = False,
        backend: str = "auto",
    ) -> None:
        self._models = validation.modules(model)
        self._settings = settings
        self._weight = weight
        self._scaler = validation.grad_scaler(scaler)
        self._zeroed_grads = validation.flag("zeroed_grads", zeroed_grads)
        self._backend = backend
        self._params = None if params is None else validation.subset(params, self._trainable())
        self._num_steps = 0
        self._displaced = False
        self._stats: AlignmentStats | None = None
        self._weight_cell: Tensor | None = None
        self._watch = DisplacementWatch()
        self._graph_info: GraphInfo | None = None
        params = self._trainable()
        ParamSpace(params, self._params, backend)  # an impossible backend or dtype shows here, not in a step
        self._memory = self._memory_of(params)

    @abstractmethod
    def _schedule(self, step: Step, total: Vector) -> Schedule:
        """The passes of a step with the term; `total` is the vector that becomes `.grad`."""

    def _masters(self, space: ParamSpace) -> Vector | None:
        """Float32 masters that serve as backup, where there are some."""
        return None

    def _restored(self, space: ParamSpace) -> None:  # noqa: B027 - most methods have nothing to do
        """Parameters with masters were displaced and are the rounding of their masters again."""

    def _inactive_schedule(self, step: Step, total: Vector) -> Schedule:
        """The passes of a step without the term."""
        return Plain(step, total)

    @property
    def displaced(self) -> bool:
        """Whether a displaced pass is running: metrics and logging in a model or loss_fn may look away."""
        return self._displaced

    @property
    def stats(self) -> AlignmentStats | None:
        """Statistics of the last complete step, on the device; None before the first."""
        return self._stats

    @property
    def num_steps(self) -> int:
        """Complete steps so far: the step that a scheduled weight and `every` see next."""
        return self._num_steps

    def backward(
        self,
        loss_fn: Callable[[Any], Any],
        micro_batches: Iterable[Any],
        *,
        reduction: str = "mean",
        has_aux: bool = False,
        backward: Callable[[Tensor], Any] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Any:
        """Fill `.grad` from all micro-batches of a step, in place of `loss.backward()`.

        Args:
            loss_fn: micro_batch -> scalar loss with a graph; calls no backward; called twice for a probe, each time with a
                shallow copy of a mapping or list.
            micro_batches: k >= 2 of them.
            reduction: "mean": the step's loss is the mean of the losses; "sum": they already carry their 1/k.
            has_aux: loss_fn returns (loss, anything).
            backward: who differentiates the scaled loss, `accelerator.backward` for instance (the bound method or a partial of
                it: behind a lambda, an Accelerator's division by its gradient_accumulation_steps is not seen and not
                cancelled); None: autograd.
            tasks: a label for every micro-batch: the step then also measures the alignment of the tasks (as with telemetry).

        Returns:
            The mean loss, detached; with has_aux (loss, [aux of every micro-batch, from the base passes, in order]).

        Raises:
            ValueError: fewer than two micro-batches, a `.grad` that is not None, a loss that is not a scalar with a graph.
            TypeError: micro-batches that are no list, sparse gradients, complex parameters.
            RuntimeError: a loss_fn that calls backward, or `GradAlign` itself.

        After any exception parameters and buffers are as before the call and `.grad` is None.
        """
        validation.callable_("loss_fn", loss_fn, "a function of a micro-batch")
        batches = validation.micro_batches(micro_batches)

        def closure_of(batch: Any) -> Closure:
            return lambda: loss_fn(shallow_copy(batch))

        closures = [closure_of(batch) for batch in batches]
        step = self._begin(len(batches), reduction, has_aux, backward, tasks)
        try:
            loss = step.complete(step.schedule.run(closures))
            return (loss, step.passes.aux) if has_aux else loss
        except BaseException:
            step.abort()
            raise

    def accumulate(
        self,
        k: int,
        *,
        reduction: str = "mean",
        has_aux: bool = False,
        backward: Callable[[Tensor], Any] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Accumulation:
        """The same step for a loop that sees one micro-batch at a time.

            with aligner.accumulate(k) as step:
                for micro_batch in ...:  # k of them
                    loss = step.backward(lambda: loss_fn(micro_batch))

        Parameters equal theta whenever control is with the caller. Arguments as in `backward`.

        Raises:
            ValueError: k below 2.
        """
        validation.count("k", k, least=2)
        return Accumulation(lambda: self._begin(k, reduction, has_aux, backward, tasks, one_by_one=True), k)

    def before_replay(self) -> bool:
        """The next step is the replay of one that was captured in a CUDA graph: its weight goes to the device, and it counts.

            graph = {True: with_term, False: without}[aligner.before_replay()]
            graph.replay()

        Returns:
            Whether the step has the term: steps with it and without it are graphs of their own.

        Raises:
            RuntimeError: no step ran before.
        """
        if self._weight_cell is None:
            raise RuntimeError("before_replay: expected a captured step; got none; run and capture one first")
        weight = self._weight.at(self._num_steps)
        self._weight_cell.fill_(weight)
        self._num_steps += 1
        return weight != 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of complete steps."""
        return {"num_steps": self._num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            TypeError: no mapping.
            ValueError: a state without the number of steps.
        """
        state = validation.saved_state(state, type(self).__name__)
        self._num_steps = validation.count("num_steps", state["num_steps"], least=0)

    def _trainable(self) -> list[Parameter]:
        params = {id(p): p for model in self._models for p in model.parameters() if p.requires_grad}
        return validation.trainable(list(params.values()))

    def _memory_of(self, params: list[Parameter]) -> ParamMemory:
        memory = ParamMemory(params)
        if memory.shared is not None:
            names = {id(p): name for model in self._models for name, p in model.named_parameters()}
            validation.no_shared_memory(*(names[id(params[i])] for i in memory.shared))
        return memory

    def _begin(
        self,
        num: int,
        reduction: str,
        has_aux: bool,
        backward: Callable[[Tensor], Any] | None,
        tasks: Sequence[str] | None,
        one_by_one: bool = False,
    ) -> OpenStep:
        """Check everything that can be checked before anything is touched."""
        validation.one_of("reduction", reduction, REDUCTIONS)
        settings = self._settings
        if tasks is not None:
            tasks = validation.labels(tasks, num)
            settings = replace(settings, telemetry=True)
        weight = self._weight.at(self._num_steps)
        space = ParamSpace(self._trainable(), self._params, self._backend)
        validation.no_consuming_hooks(space.params)
        if not self._zeroed_grads:
            validation.no_grads(space.params)
        differentiate, loss_scale = self._differentiation(space, backward)
        if not self._memory.is_of(space.params):
            self._memory = self._memory_of(space.params)
        buffers = Buffers(self._models, self._memory)
        factor, share = (1 / num, 1) if reduction == "mean" else (1.0, num)
        passes = Passes(
            space, self._models, buffers, factor, differentiate, has_aux, self._on_displaced, self._graph_info
        )
        masters, index = self._masters(space), self._num_steps
        step = Step(
            space,
            passes,
            settings,
            num,
            weight,
            self._weight_on(space, weight),
            loss_scale,
            share,
            index,
            masters,
            tasks,
        )
        total = space.grads()
        active = self._schedule(step, total) if weight or self._weight.may_act else None
        if backward is not None and active is not None and active.differentiates:
            raise ValueError(
                f"backward: expected None with {type(active).__name__}, which differentiates twice by itself; got "
                f"{getattr(backward, '__qualname__', backward)}; use an estimator with finite differences"
            )
        if one_by_one and active is not None and active.needs_all:
            raise ValueError(
                f"accumulate: expected an estimator that sees every micro-batch once; got {type(active).__name__}, "
                "which evaluates earlier ones again; use backward(loss_fn, micro_batches)"
            )
        schedule = active if active is not None and weight else self._inactive_schedule(step, total)
        return OpenStep(self, step, schedule, buffers.state())

    def _differentiation(
        self, space: ParamSpace, backward: Callable[[Tensor], Any] | None
    ) -> tuple[Callable[[Tensor], Any], Tensor | None]:
        """Who differentiates a loss, and the loss scale in it."""
        call = Tensor.backward if backward is None else backward
        bound = backward
        while isinstance(bound, partial):
            bound = bound.func
        owner = getattr(bound, "__self__", None)
        divides_by = getattr(owner, "gradient_accumulation_steps", 1)
        scaler: torch.amp.GradScaler | None = validation.one_scaler(self._scaler, getattr(owner, "scaler", None))
        if scaler is None or not scaler.is_enabled():
            return (lambda loss: call(loss * divides_by)) if divides_by != 1 else call, None
        scale: Callable[[Tensor], Tensor] = scaler.scale if scaler is self._scaler else _as_it_is
        return (lambda loss: call(scale(loss * divides_by))), scaler.scale(space.scalar(1.0))

    def _weight_on(self, space: ParamSpace, weight: float) -> Tensor:
        """The weight in a tensor that stays where it is; a step that is being captured finds it there at every replay."""
        capturing = space.home.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if self._weight_cell is None or self._weight_cell.device != space.home:
            if capturing:
                raise RuntimeError(
                    "expected a step before the capture of a CUDA graph; got none; warm up with a few steps"
                )
            self._weight_cell = space.scalar(weight)
        elif not capturing:
            self._weight_cell.fill_(weight)
        return self._weight_cell

    def _on_displaced(self, displaced: bool) -> None:
        self._displaced = displaced


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


class OpenStep:
    """A step in progress, and the two ways it can end."""

    def __init__(self, method: Method, step: Step, schedule: Schedule, buffers: BufferState) -> None:
        self._method = method
        self._step = step
        self._buffers = buffers
        self._before = (method._num_steps, method._stats, torch.is_grad_enabled())
        self.schedule = schedule
        self.passes = step.passes

    def complete(self, losses: list[Tensor]) -> Tensor:
        """Fill `.grad` and note the step; returns the mean loss."""
        stats = self._step.stats(losses, self.schedule.finish())
        self._method._restored(self._step.space)
        self._method._stats = stats
        self._method._num_steps += 1
        self._method._graph_info = self.passes.graph_info
        self._method._watch.note(stats.displacement_cosine, self._displaced(stats), stacklevel=3)
        return stats.loss

    def fingerprint(self) -> Fingerprint:
        """What the step finds again at its next micro-batch."""
        params, grads = self._step.space.params, self._step.space.grads()
        return Fingerprint(grads, [None if g is None else g._version for g in grads], [p._version for p in params])

    def _displaced(self, stats: AlignmentStats) -> DisplacementInfo:
        space = self._step.space
        dtypes = frozenset(space.params[i].dtype for i in space.measured)
        return DisplacementInfo(stats.radius, dtypes, self._step.displacement.with_masters)

    def abort(self) -> None:
        """Parameters, buffers and the aligner as before the step, `.grad` None."""
        method = self._method
        self._step.displacement.restore()
        self._step.space.set_grads(None)
        self.passes.forget()
        self._buffers.put_back()
        method._num_steps, method._stats, grad_enabled = self._before
        method._displaced = False
        torch.set_grad_enabled(grad_enabled)  # an interrupt in the exit of a no_grad block leaves it off


class Fingerprint(NamedTuple):
    """`.grad` and parameters while control is with the caller."""

    grads: Vector
    grad_versions: list[int | None]
    param_versions: list[int]

    def changed(self, now: Fingerprint) -> list[str]:
        """What was written since, in words."""
        same = all(map(operator.is_, self.grads, now.grads)) and self.grad_versions == now.grad_versions
        return [".grad"] * (not same) + ["parameters"] * (self.param_versions != now.param_versions)


class Accumulation:
    """A step that is given one micro-batch at a time; made by `GradAlign.accumulate`."""

    def __init__(self, begin: Callable[[], OpenStep], k: int) -> None:
        self._begin = begin
        self._k = k
        self._open: OpenStep | None = None
        self._fingerprint = Fingerprint([], [], [])
        self._losses: list[Tensor] = []

    def __enter__(self) -> Accumulation:
        self._open = step = self._begin()
        self._losses = []
        self._fingerprint = step.fingerprint()
        return self

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
        validation.callable_("closure", closure, "lambda: loss_fn(micro_batch)")
        try:
            validation.untouched(self._fingerprint.changed(step.fingerprint()))
            loss = step.schedule.visit(closure)
            self._losses.append(loss)
            self._fingerprint = step.fingerprint()
            if len(self._losses) == self._k:
                step.complete(self._losses)
            return (loss, step.passes.aux[-1]) if step.passes.has_aux else loss
        except BaseException:
            self._open = None
            step.abort()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        step, self._open = self._open, None
        if len(self._losses) == self._k:
            return
        if step is not None:
            step.abort()
        if kind is None:
            raise ValueError(f"expected k = {self._k} calls of step.backward; got {len(self._losses)}; .grad is None")
