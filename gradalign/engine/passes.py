"""One pass: a forward and a backward of one micro-batch, at theta or displaced."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradalign.engine import double_backward, losses
from gradalign.engine.devices import to_device
from gradalign.engine.graph import GraphWatch, leaves_out_a_function, older_graph
from gradalign.engine.kept_losses import KeptLosses
from gradalign.engine.low_precision import LOW_PRECISION
from gradalign.engine.models import gradients_apart
from gradalign.engine.ranks import no_other_wrappers
from gradalign.engine.replay import Buffers, RandomWatch, ReplayState, with_generators
from gradalign.engine.side_effects import SideEffects
from gradalign.engine.space import ParamSpace, Vector, there

Closure = Callable[[], Any]
_ALONE = nullcontext()
SECOND_BACKWARD = "backward through the graph a second time"  # torch's words


class Recorded(NamedTuple):
    """A base pass that can be evaluated again: its closure, what it started from, its loss, and what is known of its gradient.

    The gradient is described where it is as large as in plain training and stands by itself: one that autograd differentiates,
    without loss scale or another ratio, into an empty vector.

    Attributes:
        reached: the parameters that have a gradient after it, by their place.
    """

    closure: Closure
    start: ReplayState
    loss: Tensor
    reached: frozenset[int]
    gradient: Tensor | None = None


@dataclass(frozen=True)
class LossHandling:
    """What a closure returns, and how it is differentiated.

    Attributes:
        differentiate: called with the loss times ratio and factor; multiplies it with the loss scale, if there is one.
        factor: what the plain accumulation loop multiplies losses with: 1/k, or 1 where they carry it.
        num: k, how many micro-batches have a loss.
        has_aux: whether closures return (loss, anything).
    """

    differentiate: Callable[[Tensor], Any]
    factor: float
    num: int
    has_aux: bool = False


class Passes:
    """Runs the passes of one step and lets autograd add their gradients to a vector.

    Every pass differentiates `scale * ratio * factor * loss`: `factor` is that of `LossHandling`, whose `differentiate` brings
    the loss scale, and `ratio` is the caller's.

    Args:
        space: the trainable parameters.
        models: what is trained.
        buffers: what is replayed.
        handling: what a loss is and how it is differentiated.
        on_displaced: called with True before a displaced pass and with False after it.
        graphs: looks at the graphs of some losses. They also show autocast that is opened deep inside a model.
        watched: those of the models where forward hooks look for autocast; none in a step that need not know.
    """

    def __init__(
        self,
        space: ParamSpace,
        models: Iterable[nn.Module],
        buffers: Buffers,
        handling: LossHandling,
        on_displaced: Callable[[bool], None],
        graphs: GraphWatch,
        watched: Sequence[nn.Module],
    ) -> None:
        self._space = space
        self.models = list(models)
        self._watched = watched
        self._buffers = buffers
        self._factor = handling.factor
        self._differentiate = handling.differentiate
        self.has_aux = handling.has_aux
        self._on_displaced = on_displaced
        self._graphs = graphs
        self._devices = space.devices
        self._autocast_dtypes = _autocast_dtypes(self._devices)
        if space.ranks is not None:
            self._devices = sorted({*space.devices, *space.ranks.devices}, key=str)
            self._autocast_dtypes |= LOW_PRECISION & space.ranks.forward_dtypes
        self._generators = with_generators(self._devices)
        self._side_effects: SideEffects | None = None
        self._recording = False
        self._random: RandomWatch | None = None
        self._observed = False
        self._looks_for_wrappers = False
        self.local = False  # no pass is averaged over ranks from now on
        self.recorded: Recorded | None = None
        self.describe: Callable[[Vector], Tensor] | None = None  # a gradient, in a few numbers
        self.kept = KeptLosses(handling.num)
        self.count = 0
        self.aux: list[Any] = []

    def base_pass(self, closure: Closure, into: Vector, ratio: float | Tensor = 1.0, *, more: bool = False) -> Tensor:
        """A pass at theta whose gradient is added to `into`; returns its loss, detached.

        Args:
            closure: computes the loss.
            into: where its gradient goes.
            ratio: of the loss that is differentiated.
            more: another pass into the same vector follows before anything reads it: its mean over ranks may wait until then.
        """
        if (self.count or not self._watched) and not self._observed:
            return self._run(closure, into, ratio, keep_aux=True, more=more)
        start = self.replay_state() if self._recording and self.recorded is None else None
        plain = isinstance(ratio, float) and ratio == 1 and self._differentiate is Tensor.backward
        alone = plain and start is not None and not any(map(there, into))
        if self._random is not None:
            self._random.check()
        effects = self._side_effects
        micro_batch = getattr(closure, "micro_batch", None)
        before = None if effects is None else effects.before(micro_batch)
        with self._watching_autocast():
            loss = self._run(closure, into, ratio, keep_aux=True, more=more)
        if effects is not None and before is not None:
            effects.check(before, micro_batch)
        if self._random is not None:
            self._random.note()
        if start is not None:
            reached = frozenset(i for i, g in enumerate(into) if g is not None)
            gradient = self.describe(into) if alone and self.describe else None
            self.recorded = Recorded(closure, start, loss, reached, gradient)
        return loss

    def isolated_pass(self, closure: Closure) -> tuple[Tensor, Vector]:
        """A pass at theta; returns its loss, detached, and its own gradient (times factor and loss scale)."""
        gradient = self._space.zeros()
        return self.base_pass(closure, gradient), gradient

    def displaced_pass(self, closure: Closure, into: Vector, ratio: float | Tensor, *, more: bool = False) -> Tensor:
        """A pass at displaced parameters whose gradient is added to `into`, as `base_pass` does.

        Returns:
            its loss, detached; loss_fn may have the same one.
        """
        self._on_displaced(True)
        try:
            return self._run(closure, into, ratio, keep_aux=False, more=more)
        finally:
            self._on_displaced(False)

    def again(self, closure: Closure) -> Vector:
        """One more pass at theta of a micro-batch that had its base pass; returns its own gradient, as `isolated_pass` does."""
        gradient = self._space.zeros()
        self.displaced_pass(closure, gradient, 1.0)
        return gradient

    def differentiable(
        self, closure: Closure, scale: Tensor, inputs: Sequence[Tensor] | None = None, name: str = "exact"
    ) -> tuple[Tensor, Vector]:
        """A base pass by `torch.autograd.grad`.

        Args:
            closure: computes the loss.
            scale: the loss scale.
            inputs: what to differentiate by instead of the parameters.
            name: of the method, for messages.

        Returns:
            the loss, detached, and the gradient with its graph, by the parameters as it is before their hooks.
        """
        hooked: Sequence[Tensor] = self._space.params if inputs is None else ()
        among = [self._space.params[i] for i in self._space.measured] if inputs is None else None
        inputs = self._space.params if inputs is None else inputs
        self._space.set_grads(None)
        with self._watching_autocast():
            loss = self._loss(closure, self._space.zeros(), keep_aux=True)
            with double_backward.twice_differentiable(name):
                double_backward.no_once_only(loss, among)
            value, factor = self.kept.keep(loss), to_device(scale * self._factor, loss.device)
            with _without_hooks(hooked):
                graph = torch.autograd.grad(loss * factor, inputs, create_graph=True, allow_unused=True)
        self.count += 1
        return value, list(graph)

    def differentiate_again(self, graph: Vector, direction: Vector) -> Vector:
        """Gradient of (graph . direction), at the scale of `differentiable`."""
        pairs = [
            (g, w) for g, w in zip(graph, direction, strict=True) if g is not None and g.requires_grad and w is not None
        ]
        self.count += 1
        if not pairs:
            return self._space.zeros()
        with double_backward.twice_differentiable():
            double_backward.no_refusal(g for g, _ in pairs)
            return list(
                torch.autograd.grad([g for g, _ in pairs], self._space.params, [w for _, w in pairs], allow_unused=True)
            )

    def observe(self, side_effects: SideEffects | None, record: bool, random: RandomWatch | None) -> None:
        """From now on, refuse side effects of base passes; if asked to, record the first and watch random numbers."""
        self._side_effects, self._recording, self._random = side_effects, record, random
        self._observed = side_effects is not None or record or random is not None

    def stop_observing(self) -> None:
        """Neither refuse side effects, nor record, nor watch random numbers from now on."""
        self.observe(None, False, None)

    def no_trained_written(self, grads: Vector) -> None:
        """Refuse writes of base passes into parameters that have no gradient after all passes."""
        if self._side_effects is not None:
            self._side_effects.check_trained(self._space.params, grads)

    @property
    def records(self) -> bool:
        """Whether a base pass is to be recorded."""
        return self._recording

    def take_recorded(self) -> Recorded | None:
        """The recorded base pass, once."""
        recorded, self.recorded = self.recorded, None
        self._recording = self._recording and recorded is None
        return recorded

    def allow_reused_graphs(self) -> None:
        """Later passes go on from the graphs of earlier ones."""
        self._graphs.may_reuse_graphs = True

    def need_same_masks(self) -> None:
        """Refuse dropout whose masks a second pass could not draw again."""
        self._graphs.needs_same_masks = True

    def look_for_wrappers(self) -> None:
        """In the first pass, refuse wrappers of several processes that only the loss_fn knows."""
        self._looks_for_wrappers = True

    def anywhere(self, flag: bool) -> bool:
        """Whether a flag is set in this process, or on any other rank."""
        ranks = self._space.ranks
        return flag if ranks is None else ranks.anywhere(flag, self._space.home)

    def evaluate_again(self, recorded: Recorded) -> Tensor:
        """The loss of a recorded base pass, evaluated once more; random numbers and buffers are put back."""
        ranks = self._space.ranks
        with self._once_more(recorded), _ALONE if ranks is None else ranks.one_pass(more=True, backward=False):
            return self._result(recorded.closure)[0].detach()

    def differentiate_recorded(
        self, recorded: Recorded, into: Vector, ratio: float = 1.0, among: Sequence[int] | None = None
    ) -> Tensor:
        """The loss of a recorded base pass, evaluated once more; ratio times its own gradient is added to `into`.

        The gradient is as large as in plain training, where backward need not be linear: times `factor`, without loss scale. It
        comes from autograd whoever else differentiates, and nothing but the parameters (those at `among`; None: all) gets one.
        `.grad`, random numbers and buffers are put back.

        Raises:
            LossAloneError: the backward failed, or would leave out a part.
        """
        places = range(len(self._space.params)) if among is None else among
        params = [self._space.params[i] for i in places]
        reached = [self._space.params[i] for i in places if i in recorded.reached]
        grads = self._space.grads()
        with self._once_more(recorded):
            try:
                loss, _ = self._result(recorded.closure)
                if leaves_out_a_function(loss, params, reached):
                    raise LossAloneError
                self._space.set_grads(into)
                try:
                    (loss * (ratio * self._factor)).sum().backward(inputs=params)
                except RuntimeError as error:
                    raise LossAloneError from error
                into[:] = self._space.grads()
                return loss.detach()
            finally:
                self._space.set_grads(grads)

    @contextmanager
    def _once_more(self, recorded: Recorded) -> Iterator[None]:
        """Random numbers and buffers are those that a recorded pass began with, and put back afterwards.

        After an exception random numbers stay where it found them, as in any other pass; aborting the step puts buffers back.
        """
        end = self.replay_state()
        recorded.start.put_back()
        self._on_displaced(True)
        try:
            yield
        except LossAloneError:  # another way is tried, from here
            end.put_back()
            raise
        finally:
            self._on_displaced(False)
        end.put_back()

    def epsilon(self, recorded: Recorded) -> float:
        """The relative rounding of a recorded loss: of its dtype or of that of the forward, whichever is coarser."""
        return max(torch.finfo(dtype).eps for dtype in (self.forward_dtype, recorded.loss.dtype))

    @property
    def factor(self) -> float:
        """What losses are multiplied with before they are differentiated, beside ratio and loss scale."""
        return self._factor

    @property
    def autocast(self) -> bool:
        """Whether the forward runs under autocast, as far as the passes so far have shown."""
        return bool(self._autocast_dtypes or self._graphs.casts_to_16_bit)

    @property
    def casts_to_16_bit(self) -> bool | None:
        """What the graphs of losses showed of autocast; None: none was looked at."""
        return None if self._graphs.casts_to_16_bit is None else self.autocast

    @property
    def watches_autocast(self) -> bool:
        """Whether hooks look for autocast in the first pass."""
        return bool(self._watched)

    @property
    def casts_shown(self) -> bool:
        """Whether autocast shows without a graph, around the step or in a hook on a model."""
        return bool(self._autocast_dtypes)

    @property
    def forward_dtype(self) -> torch.dtype:
        """The least precise dtype that the forward is known to compute in."""
        params = (p for model in self.models for p in model.parameters() if p.is_floating_point())
        dtypes = {p.dtype for p in params if p.dtype.itemsize > 1}  # 8 bits are stored, and not computed in
        dtypes |= self._autocast_dtypes
        if self._graphs.casts_to_16_bit and not self._autocast_dtypes:
            dtypes.add(torch.bfloat16)
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    def replay_state(self) -> ReplayState:
        """A snapshot of random number generators and buffers."""
        return ReplayState(self._generators, self._buffers)

    def _run(self, closure: Closure, into: Vector, ratio: float | Tensor, keep_aux: bool, more: bool) -> Tensor:
        ranks = self._space.ranks
        if ranks is None:  # without a context that does nothing: entering it takes time in every pass
            return self._forward_and_backward(closure, into, ratio, keep_aux)
        with ranks.one_pass(more or self.local):
            return self._forward_and_backward(closure, into, ratio, keep_aux)

    def _forward_and_backward(self, closure: Closure, into: Vector, ratio: float | Tensor, keep_aux: bool) -> Tensor:
        self._space.set_grads(into)
        loss = self._loss(closure, into, keep_aux)
        factor = ratio * self._factor
        if isinstance(factor, Tensor) and factor.device != loss.device:
            factor = to_device(factor, loss.device)
        value = self.kept.keep(loss) if keep_aux else loss.detach()
        try:
            self._differentiate(loss * factor)
        except RuntimeError as error:
            if SECOND_BACKWARD in str(error):
                raise older_graph() from error
            if not torch.is_grad_enabled():  # loss_fn may enable them for itself
                losses.differentiable_scalar(loss.detach())
            raise
        self.count += 1
        grads = self._space.grads()
        if not all(map(operator.is_, grads, into)):
            if losses.dense_gradients(grads):
                grads = [None if g is None else g.resolve_neg() for g in grads]
                self._space.set_grads(grads)
            if self._side_effects is not None and self._side_effects.inspects and not any(map(there, into)):
                ranks = self._space.ranks
                gradients_apart(self.models, self._space.params, grads if ranks is None else ranks.local(grads))
            into[:] = grads
        return value

    def _loss(self, closure: Closure, grads: Vector, keep_aux: bool) -> Tensor:
        """The validated loss of a closure, which must not change these `.grad`."""
        before = losses.versions_of(grads)
        since = self._graphs.begin()
        loss, aux = self._result(closure) if self.has_aux else (closure(), None)
        losses.differentiable_scalar(loss)
        losses.no_backward_inside(before, self._space.grads())
        if since is not None:
            self._graphs.look(loss, since, self.casts_shown)
        if keep_aux:
            self.aux.append(aux)
        return loss.reshape(()) if loss.dim() else loss

    def _result(self, closure: Closure) -> tuple[Any, Any]:
        """What a closure returns, as (loss, aux)."""
        return losses.loss_and_aux(closure()) if self.has_aux else (closure(), None)

    def _watching_autocast(self) -> AbstractContextManager[None]:
        """In the first base pass: does a model's forward run under autocast?"""
        return _ALONE if self.count or not self._watched else self._hooked_models()

    @contextmanager
    def _hooked_models(self) -> Iterator[None]:
        try:
            for model in self._watched:
                if not isinstance(model, torch.jit.ScriptModule):  # which takes no hook
                    model.register_forward_pre_hook(self._note_autocast)
            with no_other_wrappers(self.models) if self._looks_for_wrappers else _ALONE:
                yield
        finally:
            self.forget()

    def _note_autocast(self, *_: object) -> None:
        self._autocast_dtypes |= _autocast_dtypes(self._devices)

    def forget(self) -> None:
        """Remove our hooks; an interrupt may have come between registering one and getting its handle."""
        for model in self._watched:
            hooks = model._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook == self._note_autocast]:
                del hooks[key]


class LossAloneError(Exception):
    """`Passes.differentiate_recorded` came to a loss, and to no gradient.

    So it is with a reentrant checkpoint, which takes no `inputs` or does not run, and without the memory for one more gradient.
    """


@contextmanager
def _without_hooks(params: Iterable[Tensor]) -> Iterator[None]:
    """Hooks on gradients are left out of the graph of a first gradient: the derivative of that one is handed to them."""
    held = [(hooks, dict(hooks)) for hooks in (p._backward_hooks for p in params) if hooks]
    try:
        for hooks, _ in held:
            hooks.clear()
        yield
    finally:
        for hooks, kept in held:
            hooks.update(kept)


@torch.no_grad()
def hooks_applied(params: Iterable[Tensor], gradient: Vector) -> Vector:
    """A gradient as the hooks of its parameters make it, detached."""
    found: Vector = []
    for p, g in zip(params, gradient, strict=True):
        if g is not None:
            g = g.detach()
            for hook in (p._backward_hooks or {}).values():
                answer = hook(g)
                g = g if answer is None else answer
        found.append(g)
    return found


def _autocast_dtypes(devices: Iterable[torch.device]) -> set[torch.dtype]:
    return {torch.get_autocast_dtype(d.type) for d in devices if torch.is_autocast_enabled(d.type)}
