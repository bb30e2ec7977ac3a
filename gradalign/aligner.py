"""`GradAlign`: the whole step behind one call that takes the place of `loss.backward()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradalign import checks, estimators
from gradalign.batches import handed_out
from gradalign.estimators import Plain, Schedule, Settings, Step
from gradalign.objectives import objective as objective_named
from gradalign.passes import Closure, Passes
from gradalign.replay import BufferState, modules_with_buffers
from gradalign.space import ParamSpace
from gradalign.telemetry import AlignmentStats

NORMALIZATIONS = ("none", "direction", "gradient")
DIFFERENCES = ("forward", "central")
REDUCTIONS = ("mean", "sum")


class GradAlign:
    """Fills `.grad` with the gradient of `mean_i L_i - weight * A`, A the agreement of the micro-batches' gradients.

        .grad = gbar - weight * term,      term = s sum_i omega_i H_i w_i

    with Hessian-vector products from finite differences: parameters are displaced in place, one more backward pass runs, the
    parameters come back bit for bit. It never wraps, owns or steps the optimizer.

    Args:
        model: the module, or several, whose parameters are trained and whose buffers displaced passes leave alone.
        weight: of the term, a number or a function of the step (counted from 0). Its unit depends on `normalize`: a length in
            parameter space for "direction", as SAM's rho.
        objective: A: "dot" (mean g_i . g_j), "norm" (its negative), "variance" (minus the sample variance of the g_i) or
            "cosine" (mean cos(g_i, g_j)).
        normalize: "direction" (w_i = v_i^, s = 1), "none" (w_i = v_i, s = 2: the gradient of A itself) or "gradient" (the
            term rescaled to the norm of gbar).
        estimator: which micro-batches are compared with which: "split".
        probe_fraction: share of the micro-batches that are probes in `split`.
        difference: "forward" or "central" (one more pass a probe).
        radius: length of the displacement [parameter]; None: 0.01, or 0.03 for bf16/fp16 parameters or under autocast.
        every: the term is there in steps with `step % every == 0`, with the weight times `every`.
        params: the parameters that A is measured on and that are displaced; None: all that require grad.
        scaler: the GradScaler that scales the losses.
        telemetry: also look at every gradient's norm: dot, cosine and noise scale in every step, for two more copies.
        zeroed_grads: accept `.grad` that is zeros instead of None on entry, and add to it.
        backend: what runs the kernels: "auto", "reference", "native" or "triton".

    Raises:
        ValueError: a name, number or parameter that does not fit.
        TypeError: an argument of the wrong type.

    Examples:
        >>> import torch, gradalign
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> aligner = gradalign.GradAlign(model, weight=0.001)
        >>> micro_batches = gradalign.chunk(torch.randn(16, 3), 8)
        >>> loss = aligner.backward(lambda x: model(x).square().mean(), micro_batches)
        >>> optimizer.step(); optimizer.zero_grad()
        >>> aligner.stats.passes
        10
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module],
        weight: float | Callable[[int], float],
        *,
        objective: str = "dot",
        normalize: str = "direction",
        estimator: str = "split",
        probe_fraction: float = 0.25,
        difference: str = "forward",
        radius: float | None = None,
        every: int = 1,
        params: Iterable[Parameter] | None = None,
        scaler: torch.amp.GradScaler | None = None,
        telemetry: bool = False,
        zeroed_grads: bool = False,
        backend: str = "auto",
    ) -> None:
        self._models = checks.modules(model)
        self._weight = weight if callable(weight) else checks.finite("weight", weight)
        self._settings = Settings(
            objective=objective_named(objective),
            normalize=checks.one_of("normalize", normalize, NORMALIZATIONS),
            central=checks.one_of("difference", difference, DIFFERENCES) == "central",
            radius=None
            if radius is None
            else checks.positive("radius", radius, "a length, in the units of the parameters"),
            telemetry=telemetry,
        )
        self._estimator = estimators.ESTIMATORS[checks.one_of("estimator", estimator, estimators.ESTIMATORS)]
        self._probe_fraction = checks.fraction("probe_fraction", probe_fraction)
        self._every = checks.count("every", every, least=1)
        self._scaler = scaler
        self._zeroed_grads = zeroed_grads
        self._backend = backend
        self._params = None if params is None else checks.subset(params, self._trainable())
        self._num_steps = 0
        self._displaced = False
        self._busy = False
        self._stats: AlignmentStats | None = None
        ParamSpace(self._trainable(), self._params, backend)  # an impossible backend or dtype shows here, not in a step

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
    ) -> Any:
        """Fill `.grad` from all micro-batches of a step, in place of `loss.backward()`.

        Args:
            loss_fn: micro_batch -> scalar loss with a graph; calls no backward; called twice for a probe, each time with a
                shallow copy of a mapping or list.
            micro_batches: k >= 2 of them.
            reduction: "mean": the step's loss is the mean of the losses; "sum": they already carry their 1/k.
            has_aux: loss_fn returns (loss, anything).
            backward: who differentiates the scaled loss, `accelerator.backward` for instance; None: autograd.

        Returns:
            The mean loss, detached; with has_aux (loss, [aux of every micro-batch, from the base passes, in order]).

        Raises:
            ValueError: fewer than two micro-batches, a `.grad` that is not None, a loss that is not a scalar with a graph.
            TypeError: micro-batches that are no list, sparse gradients, complex parameters.
            RuntimeError: a loss_fn that calls backward, or `GradAlign` itself.

        After any exception parameters and buffers are as before the call and `.grad` is None.
        """
        batches = checks.micro_batches(micro_batches)

        def closure_of(batch: Any) -> Closure:
            return lambda: loss_fn(handed_out(batch))

        closures = [closure_of(batch) for batch in batches]
        step = self._begin(len(batches), reduction, has_aux, backward)
        try:
            loss = step.complete(step.schedule.run(closures))
            return (loss, step.passes.aux) if has_aux else loss
        except BaseException:
            step.abort()
            raise

    def accumulate(
        self, k: int, *, reduction: str = "mean", has_aux: bool = False, backward: Callable[[Tensor], Any] | None = None
    ) -> Accumulation:
        """The same step for a loop that sees one micro-batch at a time.

            with aligner.accumulate(k) as step:
                for micro_batch in ...:  # k of them
                    loss = step.backward(lambda: loss_fn(micro_batch))

        Parameters equal theta whenever control is with the caller. Arguments as in `backward`.

        Raises:
            ValueError: k below 2.
        """
        checks.count("k", k, least=2)
        return Accumulation(lambda: self._begin(k, reduction, has_aux, backward), k)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the number of complete steps."""
        return {"num_steps": self._num_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: a state without the number of steps.
        """
        if "num_steps" not in state:
            raise ValueError(
                f"load_state_dict: expected the state of a GradAlign (num_steps); got keys {sorted(state)}"
            )
        self._num_steps = checks.count("num_steps", state["num_steps"], least=0)

    def _trainable(self) -> list[Parameter]:
        params = {id(p): p for model in self._models for p in model.parameters() if p.requires_grad}
        return checks.trainable(list(params.values()))

    def _weight_now(self) -> float:
        """The weight of the coming step, 0 where the term rests."""
        if self._num_steps % self._every:
            return 0.0
        weight = self._weight
        return self._every * (checks.finite("weight(step)", weight(self._num_steps)) if callable(weight) else weight)

    def _begin(self, num: int, reduction: str, has_aux: bool, backward: Callable[[Tensor], Any] | None) -> _OpenStep:
        """Check everything that can be checked before anything is touched."""
        checks.one_of("reduction", reduction, REDUCTIONS)
        weight = self._weight_now()
        space = ParamSpace(self._trainable(), self._params, self._backend)
        checks.no_consuming_hooks(space.params)
        if not self._zeroed_grads:
            checks.no_grads(space.params)
        differentiate, loss_scale = self._differentiation(space, backward)
        modules = modules_with_buffers(self._models)
        factor, share = (1 / num, 1) if reduction == "mean" else (1.0, num)
        passes = Passes(space, self._models, modules, factor, differentiate, has_aux, self._notice)
        step = Step(space, passes, self._settings, num, space.scalar(weight), loss_scale, share)
        total = space.grads()
        schedule = self._estimator(step, total, self._probe_fraction) if weight else Plain(step, total)
        return _OpenStep(self, step, schedule, BufferState(modules))

    def _differentiation(
        self, space: ParamSpace, backward: Callable[[Tensor], Any] | None
    ) -> tuple[Callable[[Tensor], Any], Tensor | None]:
        """Who differentiates a loss, and the loss scale in it."""
        call = Tensor.backward if backward is None else backward
        owner = getattr(backward, "__self__", None)
        divides_by = getattr(owner, "gradient_accumulation_steps", 1)
        scaler: torch.amp.GradScaler | None = checks.one_scaler(self._scaler, getattr(owner, "scaler", None))
        if scaler is None or not scaler.is_enabled():
            return (lambda loss: call(loss * divides_by)) if divides_by != 1 else call, None
        scale: Callable[[Tensor], Tensor] = scaler.scale if scaler is self._scaler else _as_it_is
        return (lambda loss: call(scale(loss * divides_by))), scaler.scale(space.scalar(1.0))

    def _notice(self, displaced: bool) -> None:
        self._displaced = displaced


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


class _OpenStep:
    """A step in progress, and the two ways it can end."""

    def __init__(self, aligner: GradAlign, step: Step, schedule: Schedule, buffers: BufferState) -> None:
        self._aligner = aligner
        self._step = step
        self._buffers = buffers
        self._before = (aligner._num_steps, aligner._stats, torch.is_grad_enabled())
        self.schedule = schedule
        self.passes = step.passes

    def complete(self, losses: list[Tensor]) -> Tensor:
        """Fill `.grad` and note the step; returns the mean loss."""
        stats = self._step.stats(losses, self.schedule.finish())
        self._aligner._stats = stats
        self._aligner._num_steps += 1
        return stats.loss

    def abort(self) -> None:
        """Parameters, buffers and the aligner as before the step, `.grad` None."""
        self._step.displacement.restore()
        self._buffers.put_back()
        self._step.space.set_grads(None)
        aligner = self._aligner
        aligner._num_steps, aligner._stats, grad_enabled = self._before
        aligner._displaced = False
        torch.set_grad_enabled(grad_enabled)  # an interrupt in the exit of a no_grad block leaves it off


class Accumulation:
    """A step that is given one micro-batch at a time; made by `GradAlign.accumulate`."""

    def __init__(self, begin: Callable[[], _OpenStep], k: int) -> None:
        self._begin = begin
        self._k = k
        self._open: _OpenStep | None = None
        self._losses: list[Tensor] = []

    def __enter__(self) -> Accumulation:
        self._open = self._begin()
        self._losses = []
        return self

    def backward(self, closure: Closure) -> Any:
        """All passes of the next micro-batch; the last of the k fills `.grad`.

        Args:
            closure: computes its scalar loss, with a graph; called twice for a probe.

        Returns:
            The loss of the base pass, detached; with has_aux (loss, aux).

        Raises:
            RuntimeError: outside the `with` block, or after a failed call.
            ValueError: more than k calls, or a loss that is not a scalar with a graph.
        """
        step = self._open
        if step is None:
            raise RuntimeError(
                "expected a call inside `with aligner.accumulate(k)`; got one outside, or after a failed one"
            )
        if len(self._losses) == self._k:
            raise ValueError(f"expected k = {self._k} calls of step.backward; got one more; begin a step for every k")
        try:
            loss = step.schedule.visit(closure)
            self._losses.append(loss)
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
