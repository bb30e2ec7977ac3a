"""What every way of filling `.grad` shares: one call in place of `loss.backward()`, and the promises it keeps."""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign.backends.dispatch import BackendName
from gradalign.batches import is_mutable
from gradalign.engine import validation
from gradalign.engine.given_once import GivenOnce, described, keeps_arguments
from gradalign.engine.graph import GraphWatch
from gradalign.engine.inspection import Inspection
from gradalign.engine.loss_scaling import LossScaling, differentiation, grad_scaler
from gradalign.engine.low_precision import LOW_PRECISION, DisplacementWatch
from gradalign.engine.memory import Memory
from gradalign.engine.models import (
    Models,
    Parts,
    grads_are_zeros,
    no_consuming_hooks,
    no_grads,
    params_of,
    still_there,
    subset,
)
from gradalign.engine.passes import LossHandling, Passes
from gradalign.engine.plain import Plain
from gradalign.engine.ranks import group_is_up
from gradalign.engine.replay import Buffers, numpy_random
from gradalign.engine.schedule import NeedsAllError, Schedule
from gradalign.engine.side_effects import no_tensor_filled_again
from gradalign.engine.sources import Sources, labels
from gradalign.engine.space import ParamSpace, Vector
from gradalign.engine.step import Carried, MicroBatches, Settings, Step, StepWeight
from gradalign.engine.transaction import Accumulation, Lifecycle, OpenStep, Outcome, Progress
from gradalign.engine.validation import callable_, count
from gradalign.engine.validation import micro_batches as validated_micro_batches
from gradalign.engine.weight import ONE, Weight
from gradalign.telemetry import AlignmentStats

Reduction = Literal["mean", "sum"]
REDUCTIONS = get_args(Reduction)
STACK = 3  # from `_commit` to the line of the user


class StepRequest(NamedTuple):
    """What the user asks of one step.

    Attributes:
        num: k, the number of micro-batches.
        reduction: whether the step's loss is the mean or the sum of the losses.
        has_aux: whether closures return (loss, anything).
        backward: who differentiates the scaled loss; None: autograd.
        tasks: a label for every micro-batch, or None.
        sources: the same; agreement is then between sources.
        one_by_one: whether micro-batches come one at a time.
    """

    num: int
    reduction: Reduction = "mean"
    has_aux: bool = False
    backward: Callable[[Tensor], Any] | None = None
    tasks: Sequence[str] | None = None
    sources: Sequence[Hashable] | None = None
    one_by_one: bool = False


@dataclass(frozen=True)
class MethodOptions:
    """What all methods can be given.

    Attributes:
        params: the parameters that are displaced; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry, and add to it.
        backend: what runs the kernels.
        optimizer: a `gradalign.optim` optimizer whose float32 masters serve as backup.
        check_replay: evaluate one loss of the first step with the term again, and refuse a loss_fn that is no function of it.
    """

    params: Iterable[Parameter] | None = None
    scaler: torch.amp.GradScaler | None = None
    zeroed_grads: bool = False
    backend: BackendName = "auto"
    optimizer: Any = None
    check_replay: bool = False


class Method(ABC):
    """Fills `.grad` from the micro-batches of a step.

    `GradAlign` and every baseline are methods, so that any two can be swapped. A subclass says which schedule of passes runs
    (`_schedule`). Parameters come back bit for bit after every step; after an exception in a step parameters and buffers are
    as before and `.grad` is None; what a pass at other parameters than theta does to buffers and random streams leaves no
    trace.

    Args:
        model: the module, or several, whose parameters are trained and whose buffers displaced passes leave alone.
        settings: what the schedules need to know.
        options: what all methods can be given.
        weight: of the term; a step with 0 is the plain accumulation loop.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        settings: Settings,
        options: MethodOptions,
        weight: Weight = ONE,
    ) -> None:
        self._models = Models(model)
        self._settings = settings
        self._weight = weight
        self._scaler = grad_scaler(options.scaler)
        self._zeroed_grads = validation.flag("zeroed_grads", options.zeroed_grads)
        self._backend = options.backend
        params = self._models.trainable()
        self._params = None if options.params is None else subset(options.params, params)
        self._optimizer = None if options.optimizer is None else validation.gradalign_optimizer(options.optimizer)
        self._check_replay = validation.flag("check_replay", options.check_replay)
        self._displaced = False
        self._progress = Progress()
        self._doubted = False  # whether the loss of a step was warned of
        self._weight_cell: Tensor | None = None
        self._watch = DisplacementWatch()
        self._last_space: ParamSpace | None = None
        numpy_random()
        ParamSpace(params, self._params, options.backend)  # an impossible backend or dtype shows here, not in a step
        self._memory = self._models.memory(params)
        self._estimator_memory = Memory()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("gradalign."):
            for name in inspect.signature(cls.__init__).parameters:
                if not hasattr(cls, name):
                    setattr(cls, name, GivenOnce(name))
            if "__init__" in vars(cls):
                cls.__init__ = keeps_arguments(cls.__init__)  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({described(self)}{self._size()})"

    def _size(self) -> str:
        """How much is trained; nothing where that cannot be told, since a description never raises."""
        try:
            trained = {id(p): p for m in self._models.modules for p in params_of(m) if p.requires_grad}.values()
            return f"; trains {sum(p.numel() for p in trained):,} parameters in {len(trained)} tensors"
        except Exception:
            return ""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_last_space": None}  # it is found again; the modules in it cannot be copied

    @abstractmethod
    def _schedule(self, step: Step, total: Vector) -> Schedule:
        """The passes of a step with the term; `total` is the vector that becomes `.grad`."""

    def _inactive_schedule(self, step: Step, total: Vector) -> Schedule:
        """The passes of a step without the term, where other steps may have it."""
        return Plain(step, total)

    def _least_micro_batches(self) -> int:
        """How many a step needs, to compare their gradients."""
        return 2

    def _described(self) -> str:
        """What the user chose, for messages."""
        return type(self).__name__

    def _carried(self, space: ParamSpace, frozen: Sequence[Parameter]) -> Carried:
        """What a step takes over from those before it."""
        optimizer = self._optimizer
        masters = None if optimizer is None else [optimizer.master(p) for p in space.params]
        in_16_bits = any(p.dtype in LOW_PRECISION for p in frozen)
        return Carried(masters, None if optimizer is None else optimizer.master, self._estimator_memory, in_16_bits)

    @property
    def displaced(self) -> bool:
        """Whether a displaced pass is running: metrics and logging in a model or loss_fn skip it."""
        return self._displaced

    @property
    def stats(self) -> AlignmentStats | None:
        """Statistics of the last complete step, on the device; None before the first."""
        return self._progress.stats

    @property
    def num_steps(self) -> int:
        """Complete steps so far: the step that a scheduled weight and `every` see next."""
        return self._progress.num_steps

    def backward(
        self,
        loss_fn: Callable[[Any], Any],
        micro_batches: Iterable[Any],
        *,
        reduction: Reduction = "mean",
        has_aux: bool = False,
        backward: Callable[[Tensor], Any] | None = None,
        tasks: Sequence[str] | None = None,
        sources: Sequence[Hashable] | None = None,
    ) -> Any:
        """Fill `.grad` from all micro-batches of a step, in place of `loss.backward()`.

        Args:
            loss_fn: micro_batch -> scalar loss with a graph; calls no backward; called more than once for a micro-batch that is
                displaced, each time with a shallow copy of a mapping or list.
            micro_batches: k >= 2 of them.
            reduction: "mean": the step's loss is the mean of the losses; "sum": they already carry their 1/k.
            has_aux: loss_fn returns (loss, anything).
            backward: who differentiates the scaled loss, `accelerator.backward` for instance (the bound method or a partial of
                it: behind a lambda, an Accelerator's division by its gradient_accumulation_steps is not seen and not
                cancelled); None: autograd.
            tasks: a label for every micro-batch: the step then also measures the alignment of the tasks (as with telemetry).
            sources: a label for every micro-batch, of where its samples come from: A then compares the mean gradients of
                sources, which weigh equally, and never micro-batches of one source; for "split" and "leave_one_out".

        Returns:
            The mean loss, detached; with has_aux (loss, [aux of every micro-batch, from the base passes, in order]).

        Raises:
            ValueError: fewer than two micro-batches, a `.grad` that is not None, a loss that is not a scalar with a graph.
            TypeError: micro-batches that are no list, sparse gradients, complex parameters.
            RuntimeError: a loss_fn that calls backward, or `GradAlign` itself.

        After an exception in a step parameters and buffers are as before the call and `.grad` is None; a call that is refused
        before its first pass leaves `.grad` as it was.
        """
        callable_("loss_fn", loss_fn, "a function of a micro-batch")
        batches = validated_micro_batches(micro_batches, self._least_micro_batches())
        if not isinstance(micro_batches, Sequence):
            no_tensor_filled_again(batches)

        closures = [BatchClosure(loss_fn, batch) for batch in batches]
        grad_enabled, step = torch.is_grad_enabled(), None
        try:
            try:
                step = self._begin(StepRequest(len(batches), reduction, has_aux, backward, tasks, sources))
                step.begin()
                outcome = step.complete(step.schedule.run(closures))
                loss = outcome.stats.loss.clone()  # the caller may add the next one to it in place
                result = (loss, step.passes.aux) if has_aux else loss
                return self._commit(step, outcome, result)
            except BaseException:
                self._roll_back(step, grad_enabled)
                raise
        except BaseException:  # once more, in case an interrupt came while the step was rolled back
            self._roll_back(step, grad_enabled)
            raise

    def accumulate(
        self,
        k: int,
        *,
        reduction: Reduction = "mean",
        has_aux: bool = False,
        backward: Callable[[Tensor], Any] | None = None,
        tasks: Sequence[str] | None = None,
        sources: Sequence[Hashable] | None = None,
    ) -> Accumulation:
        """The same step for a loop that sees one micro-batch at a time.

            with aligner.accumulate(k) as step:
                for micro_batch in ...:  # k of them
                    loss = step.backward(lambda: loss_fn(micro_batch))

        Parameters equal theta whenever control is with the caller.

        Args:
            k: the number of micro-batches, 2 or more.
            reduction: as in `GradAlign.backward`, and so are the others: whether the step's loss is the "mean" or the "sum" of
                the losses.
            has_aux: closures return (loss, anything), and so does `step.backward`.
            backward: who differentiates the scaled loss; None: autograd.
            tasks: a label for every micro-batch, in the order in which they will come.
            sources: the same; A then compares the mean gradients of sources.

        Returns:
            The step, for a `with` block. Entering it raises what `backward` raises before its first pass, and a ValueError for
            an estimator that needs all micro-batches at once.

        Raises:
            ValueError: k below 2.
        """
        count("k", k, least=2)
        request = StepRequest(k, reduction, has_aux, backward, tasks, sources, one_by_one=True)
        return Accumulation(Lifecycle(partial(self._begin, request), self._commit, self._roll_back), k)

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
        weight = self._weight.at(self.num_steps)
        self._weight_cell.fill_(weight)
        self._progress = self._progress._replace(num_steps=self.num_steps + 1)
        return weight != 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs.

        Returns:
            The number of complete steps, as "num_steps".
        """
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Args:
            state: what `state_dict` returned.

        Raises:
            TypeError: no mapping.
            ValueError: a state without the number of steps.
        """
        owner = type(self).__name__
        if not isinstance(state, Mapping):
            raise TypeError(f"load_state_dict: expected the state_dict of a {owner}; got {type(state).__name__}")
        if "num_steps" not in state:
            raise ValueError(f"load_state_dict: expected the state of a {owner} (num_steps); got keys {sorted(state)}")
        self._progress = self._progress._replace(num_steps=count("num_steps", state["num_steps"], least=0))

    def _begin(self, request: StepRequest) -> OpenStep:
        """Check everything that can be checked before anything is touched."""
        validation.one_of("reduction", request.reduction, REDUCTIONS)
        settings, tasks = self._settings, request.tasks
        if tasks is not None:
            tasks = _task_labels(tasks, request.num)
            if settings.separate:
                raise ValueError(
                    'tasks: expected none with scope="rank", where no rank knows the others\' gradients; got some'
                )
            settings = replace(settings, telemetry=True)
        weight = self._weight.at(self.num_steps)
        space, parts = self._space()
        inspection = Inspection(self._progress, bool(weight), request.num)
        buffers = Buffers(parts.modules, self._memory)
        passes, scaling = self._passes(space, buffers, request, inspection)
        step = Step(
            space,
            passes,
            settings,
            micro_batches=MicroBatches(request.num, tasks, self._sources(request)),
            scaling=scaling,
            weight=StepWeight(weight, self._weight_on(space, weight)),
            carried=self._carried(space, parts.frozen),
        )
        schedule = self._checked_schedule(step, weight, request)
        if schedule.reuses_graphs:
            passes.allow_reused_graphs()
        if weight and schedule.replays:
            passes.need_same_masks()
            may_record = self._check_replay and not _capturing(space.home)
            trained = space.params if space.ranks is None else ()
            modules, one_by_one = self._models.modules, request.one_by_one
            inspection.observe(passes, modules, parts.frozen, trained, may_record=may_record, one_by_one=one_by_one)
        opened = OpenStep(step, schedule, buffers.state(), self._progress)
        if group_is_up() and not _capturing(space.home):
            self._have_ranks_compared(opened, inspection, request)
        return opened

    def _have_ranks_compared(self, opened: OpenStep, inspection: Inspection, request: StepRequest) -> None:
        """Have the ranks compare what they were asked for and what they found, in the steps that are looked at."""
        step = opened.step
        if inspection.looks_for_wrappers:
            opened.passes.look_for_wrappers()
        # Of parameters that are trained since, a wrapper that was made before may know nothing.
        others = list(map(id, self._progress.ranks_compared)) != list(map(id, step.space.params))
        opened.looks_at_ranks = step.space.ranks is not None and (inspection.looks_for_wrappers or others)
        opened.labelled = request.sources is not None or request.tasks is not None
        if inspection.compares_ranks(opened.labelled or self._progress.labelled):
            sources = None if request.sources is None else labels(request.sources, request.num)
            opened.to_compare = {"micro-batches": step.num, "sources": sources, "tasks": step.tasks}

    def _space(self) -> tuple[ParamSpace, Parts]:
        """The trainable parameters as they are now, ready for a step; and all that is in the models."""
        if self._models.ranks is not None:
            self._models.ranks.parameters_are_read()
        parts = self._models.now()
        trained = parts.trained
        if self._params is not None:
            still_there(self._params, [*trained, *parts.frozen])
        space = self._last_space
        if space is None or not space.is_of(trained):
            space = ParamSpace(trained, self._params, self._backend, self._models.ranks)
            self._last_space = space
        no_consuming_hooks(space.params)
        if not self._zeroed_grads:
            no_grads(space.params)
        elif self._progress.stats is None:  # once: it waits for the device
            grads_are_zeros(space.grads() if space.ranks is None else space.ranks.local(space.grads()))
        if not self._memory.is_of(space.tensors):
            self._memory = self._models.memory(space.params)
        return space, parts

    def _sources(self, request: StepRequest) -> Sources | None:
        """Which micro-batches come from which source, where a source has several."""
        if request.sources is None:
            return None
        self._check_sources()
        if self._settings.separate:
            raise ValueError(
                'sources: expected none with scope="rank", which compares micro-batches of ranks; got labels'
            )
        sources = Sources.of(labels(request.sources, request.num))
        return None if sources.single else sources

    def _check_sources(self) -> None:
        """Refuse `sources=` where nothing is compared by source."""
        raise ValueError(
            f"sources: expected none with {self._described()}, which does not compare sources; got labels; use GradAlign with "
            'estimator "leave_one_out" or "split"'
        )

    def _passes(
        self, space: ParamSpace, buffers: Buffers, request: StepRequest, inspection: Inspection
    ) -> tuple[Passes, LossScaling]:
        """What runs the passes of a step, and what their losses are multiplied with."""
        one = space.one()
        differentiate, scale = differentiation(request.backward, self._scaler, one)
        factor, share = (1 / request.num, 1) if request.reduction == "mean" else (1.0, request.num)
        handling = LossHandling(differentiate, factor, request.num, request.has_aux)
        stand_ins = tuple if space.ranks is None else space.ranks.leaves
        before = self._progress
        watched = self._models.modules if inspection.watches_autocast(self._settings.radius) else ()
        # Whether autocast has ended shows in a graph, where hooks look for it and find none.
        looks_at = inspection.looks_at if inspection.looks or (before.casts_shown and watched) else None
        graphs = GraphWatch(
            space.params, looks_at, before.casts_to_16_bit, before.casts_shown, stand_ins, self._models.parameters
        )
        passes = Passes(space, self._models.modules, buffers, handling, self._on_displaced, graphs, watched)
        return passes, LossScaling(scale, share, by_scaler=scale is not one)

    def _checked_schedule(self, step: Step, weight: float, request: StepRequest) -> Schedule:
        """The schedule of a step; what the one with the term cannot do is refused in the first step, wherever that is."""
        total = step.space.grads()
        if not self._weight.may_act:
            return Plain(step, total) if step.sources is None else self._inactive_schedule(step, total)
        active = self._schedule(step, total)
        if weight and not step.space.measured:
            raise ValueError(
                "params: expected at least one that requires grad; got none, so that there is nothing to displace; unfreeze "
                "one, or let the weight be 0 from here on"
            )
        if step.space.ranks is not None and not active.several_ranks:
            raise ValueError(
                f"model: expected a module that one process trains, with {self._described()}, which calls autograd by itself, "
                "so that its gradients would be those of one rank; got one that several ranks train; use an estimator with "
                "finite differences"
            )
        if request.backward is not None and active.differentiates:
            raise ValueError(
                f"backward: expected None with {self._described()}, which differentiates twice by itself; got "
                f"{getattr(request.backward, '__qualname__', request.backward)}; use an estimator with finite differences"
            )
        if request.one_by_one and active.needs_all:
            raise NeedsAllError(
                f"accumulate: expected an estimator that sees every micro-batch once; got {self._described()}, "
                "which evaluates earlier ones again, or in another order; use backward(loss_fn, micro_batches)"
            )
        return active if weight else self._inactive_schedule(step, total)

    def _commit(self, step: OpenStep, outcome: Outcome, result: Any) -> Any:
        """Take in a complete step; returns the result.

        Nothing runs after its last line, so that an interrupt anywhere before it leaves a step that can be rolled back.

        Raises:
            RuntimeError: the number of steps was set within the step, and would be lost.
        """
        if self._progress is not step.progress:
            raise RuntimeError(
                "expected load_state_dict, and any other step of the same aligner, before or after a step; got one within it; "
                "move it out of the `with` block or of loss_fn"
            )
        if self._optimizer is not None:
            self._optimizer.masters_match(outcome.rounded)
        self._watch.note(outcome.stats.displacement_cosine, outcome.displacement, stacklevel=STACK)
        if outcome.doubt is not None:
            warnings.warn(outcome.doubt, UserWarning, stacklevel=STACK)
            self._doubted = True
        self._progress = outcome.progress
        return step.step.memory.commit() or result  # type: ignore[func-returns-value]

    def _roll_back(self, step: OpenStep | None, grad_enabled: bool) -> None:
        """Everything as before the step, `.grad` None; an interrupt meanwhile is held until that is done.

        Args:
            step: None where it had not begun.
            grad_enabled: whether gradients were enabled before it.
        """
        held: KeyboardInterrupt | None = None
        while step is not None and not step.rolled_back:
            try:
                step.abort()
                self._progress, self._displaced = step.progress, False
                step.rolled_back = True
            except KeyboardInterrupt as interrupt:
                held = interrupt
        torch.set_grad_enabled(grad_enabled)  # an interrupt in the exit of a no_grad block leaves it off
        if held is not None:
            raise held

    def _weight_on(self, space: ParamSpace, weight: float) -> Tensor:
        """The weight in a tensor that stays where it is; a step that is being captured finds it there at every replay."""
        capturing = _capturing(space.home)
        cell = self._weight_cell
        if cell is None or cell.device != space.home or cell.is_inference():
            if capturing:
                raise RuntimeError(
                    "expected a step before the capture of a CUDA graph; got none; warm up with a few steps"
                )
            self._weight_cell = cell = space.scalar(weight)
        elif not capturing:
            cell.fill_(weight)
        return cell

    def _on_displaced(self, displaced: bool) -> None:
        self._displaced = displaced


class BatchClosure:
    """A loss_fn and a micro-batch: each call gets a shallow copy of a mapping or list."""

    __slots__ = ("_copies", "_loss_fn", "micro_batch")

    def __init__(self, loss_fn: Callable[[Any], Any], micro_batch: Any) -> None:
        self._loss_fn = loss_fn
        self.micro_batch = micro_batch
        self._copies = type(micro_batch) is not Tensor and is_mutable(micro_batch)

    def __call__(self) -> Any:
        """What loss_fn returns."""
        return self._loss_fn(copy(self.micro_batch) if self._copies else self.micro_batch)


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _task_labels(tasks: Iterable[str], num: int) -> list[str]:
    """One label for each of `num` micro-batches."""
    found = [tasks] if isinstance(tasks, str) else [str(task) for task in tasks]
    if isinstance(tasks, str) or len(found) != num:
        raise ValueError(f"tasks: expected one label for each of the {num} micro-batches; got {found}")
    return found
