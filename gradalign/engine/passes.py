"""One pass: a forward and a backward of one micro-batch, at theta or displaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.engine import double_backward, losses
from gradalign.engine.graph import GraphInfo, inspect_graph
from gradalign.engine.replay import Buffers, ReplayState
from gradalign.engine.space import ParamSpace, Vector

Closure = Callable[[], Any]


@dataclass(frozen=True)
class LossHandling:
    """What a closure returns, and how it is differentiated.

    Attributes:
        differentiate: called with the loss times ratio and factor; multiplies it with the loss scale, if there is one.
        factor: see `LossScaling`.
        has_aux: whether closures return (loss, anything).
    """

    differentiate: Callable[[Tensor], Any]
    factor: float
    has_aux: bool = False


class Passes:
    """Runs the passes of one step and lets autograd add their gradients to a vector.

    Every pass differentiates `scale * ratio * factor * loss`: `scale` and `factor` are those of `LossScaling`, `ratio` is the
    caller's.

    Args:
        space: the trainable parameters.
        models: where forward hooks look for autocast.
        buffers: what is replayed.
        handling: what a loss is and how it is differentiated.
        on_displaced: called with True before a displaced pass and with False after it.
        graph_info: what an earlier step found in the graph of its loss; None: the first loss of this step is looked at. It may
            train nothing but the parameters, and it shows autocast that is opened deep inside a model.
    """

    def __init__(
        self,
        space: ParamSpace,
        models: Iterable[nn.Module],
        buffers: Buffers,
        handling: LossHandling,
        on_displaced: Callable[[bool], None],
        graph_info: GraphInfo | None = None,
    ) -> None:
        self._space = space
        self._models = list(models)
        self._buffers = buffers
        self._factor = handling.factor
        self._differentiate = handling.differentiate
        self.has_aux = handling.has_aux
        self._on_displaced = on_displaced
        self._devices = sorted({p.device for p in space.params}, key=str)
        self.graph_info = graph_info
        self.autocast = _autocast_enabled(self._devices) or (graph_info is not None and graph_info.casts_to_16_bit)
        self.count = 0
        self.aux: list[Any] = []

    def base_pass(self, closure: Closure, into: Vector, ratio: float | Tensor = 1.0) -> Tensor:
        """A pass at theta whose gradient is added to `into`; returns its loss, detached."""
        with self._watching_autocast():
            return self._run(closure, into, ratio, keep_aux=True)

    def isolated_pass(self, closure: Closure) -> tuple[Tensor, Vector]:
        """A pass at theta; returns its loss, detached, and its own gradient (times factor and loss scale)."""
        gradient = self._space.zeros()
        return self.base_pass(closure, gradient), gradient

    def displaced_pass(self, closure: Closure, into: Vector, ratio: float | Tensor) -> Tensor:
        """A pass at displaced parameters whose gradient is added to `into`; returns its loss, detached."""
        self._on_displaced(True)
        try:
            return self._run(closure, into, ratio, keep_aux=False)
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
            the loss, detached, and the gradient with its graph.
        """
        inputs = self._space.params if inputs is None else inputs
        self._space.set_grads(None)
        with self._watching_autocast():
            loss = self._loss(closure, self._space.zeros(), keep_aux=True)
            with double_backward.twice_differentiable(name):
                double_backward.no_once_only(loss)
            factor = (scale * self._factor).to(loss.device, non_blocking=True)
            graph = torch.autograd.grad(loss * factor, inputs, create_graph=True, allow_unused=True)
        self.count += 1
        return loss.detach(), list(graph)

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

    def replay_state(self) -> ReplayState:
        """A snapshot of random number generators and buffers."""
        return ReplayState(self._devices, self._buffers)

    def _run(self, closure: Closure, into: Vector, ratio: float | Tensor, keep_aux: bool) -> Tensor:
        self._space.set_grads(into)
        loss = self._loss(closure, into, keep_aux)
        factor = ratio * self._factor
        if isinstance(factor, Tensor):
            factor = factor.to(loss.device, non_blocking=True)
        self._differentiate(loss * factor)
        self.count += 1
        into[:] = self._space.grads()
        losses.dense_gradients(into)
        return loss.detach()

    def _loss(self, closure: Closure, grads: Vector, keep_aux: bool) -> Tensor:
        """The validated loss of a closure, which must not change these `.grad`."""
        before = [None if g is None else g._version for g in grads]
        loss, aux = losses.loss_and_aux(closure()) if self.has_aux else (closure(), None)
        losses.differentiable_scalar(loss)
        losses.no_backward_inside(before, self._space.grads())
        if self.graph_info is None:
            found = inspect_graph(loss, self._space.params)
            losses.no_foreign_params(found.foreign_params)
            self.autocast = self.autocast or found.casts_to_16_bit
            self.graph_info = found._replace(casts_to_16_bit=self.autocast)
        if keep_aux:
            self.aux.append(aux)
        return loss.reshape(())

    @contextmanager
    def _watching_autocast(self) -> Iterator[None]:
        """In the first base pass: does a model's forward run under autocast?"""
        if self.count:
            yield
            return

        try:
            for model in self._models:
                if not isinstance(model, torch.jit.ScriptModule):  # which takes no hook
                    model.register_forward_pre_hook(self._note_autocast)
            yield
        finally:
            self.forget()

    def _note_autocast(self, *_: object) -> None:
        self.autocast = self.autocast or _autocast_enabled(self._devices)

    def forget(self) -> None:
        """Remove our hooks; an interrupt may have come between registering one and getting its handle."""
        for model in self._models:
            hooks = model._forward_pre_hooks
            for key in [key for key, hook in hooks.items() if hook == self._note_autocast]:
                del hooks[key]


def _autocast_enabled(devices: Iterable[torch.device]) -> bool:
    return any(torch.is_autocast_enabled(d.type) for d in devices)
