"""`accumulate`: an aligned step over the micro-batches that Accelerate accumulates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor

from gradalign.engine.method import Method
from gradalign.engine.transaction import Accumulation
from gradalign.engine.validation import callable_
from gradalign.integrations.binding import ShortEpochs, begun, swaps_named
from gradalign.integrations.processes import served, several, wrapped

__all__ = ["Window", "accumulate"]

STACK = 4  # from `leave` to the user's `with`


@contextmanager
def accumulate(accelerator: Any, aligner: Method) -> Iterator[Window]:
    """In the place of `accelerator.accumulate(model)`: the micro-batches that it accumulates are those of one aligned step.

        with accumulate(accelerator, aligner) as step:
            loss = step.backward(lambda: loss_fn(model(batch)))  # instead of accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    k is the Accelerator's `gradient_accumulation_steps`, and the loss is divided by it. A last accumulation with fewer
    micro-batches, where the data loader ends, is trained plainly; a data loader without another one is warned of. On several
    processes with one device each, micro-batch i is what all of them have as their i-th.

    Args:
        accelerator: the Accelerator.
        aligner: a `GradAlign` or a baseline; on several processes that of the model that `accelerator.prepare` returned.

    Returns:
        A context manager for one micro-batch; what it gives is the same `Window` in every block, whose `backward` is called
        once in each.

    Raises:
        ValueError: `gradient_accumulation_steps` below 2.
        TypeError: DeepSpeed or shards; on several processes an aligner of a model that is not prepared.
        RuntimeError: a block without a call of `step.backward`; a data loader that ends in between, where its length is not
            known or batches of it came to no block; another use of the Accelerator's count of micro-batches.
    """
    served(accelerator)
    modules = aligner._models.modules
    if several(accelerator):
        wrapped(modules, "make the aligner after model = accelerator.prepare(model)")
    if accelerator.gradient_accumulation_steps < 2:
        raise ValueError(
            "gradient_accumulation_steps: expected at least 2, since they are the micro-batches whose gradients are compared; "
            f"got {accelerator.gradient_accumulation_steps}; make Accelerator(gradient_accumulation_steps=8), or cut a batch "
            "and call aligner.backward(loss_fn, gradalign.chunk(batch, 8), backward=accelerator.backward)"
        )
    window = _WINDOWS.setdefault(aligner, Window(aligner))
    with accelerator.accumulate(*modules):
        try:
            window.enter(accelerator)
            yield window
            window.leave(accelerator)
        except BaseException:
            window.abandon()
            raise


class Window:
    """The micro-batches between two steps of the optimizer; made by `accumulate`."""

    def __init__(self, aligner: Method) -> None:
        self._aligner = ref(aligner)  # weak, so that the window does not keep its own key alive
        self._accelerator: Any = None
        self._step: Accumulation | None = None
        self._plain = False
        self._num = 0  # micro-batches of this window, where it has the term
        self._visited = 0  # of these
        self._count = 0  # the Accelerator's, of micro-batches
        self._interrupted = False  # whether an exception left the window that Accelerate is in
        self._warned = False
        self._short = ShortEpochs("gradient_accumulation_steps")
        self._called = False
        self._loader: Any = None
        self._begun = 0  # how often the loader is among the active ones
        self._place = 0  # in the loader

    def backward(self, closure: Callable[[], Tensor]) -> Tensor:
        """All passes of the micro-batch of this block.

        Args:
            closure: computes its loss; called twice for a probe.

        Returns:
            The loss, detached, not divided by the number of micro-batches.

        Raises:
            RuntimeError: a second call in one block, or one outside.
        """
        callable_("closure", closure, "lambda: loss_fn(model(batch))")
        if self._accelerator is None or self._called:
            raise RuntimeError("step.backward: expected one call in each block of accumulate; got another one")
        self._called = True
        if self._step is None:
            loss = closure()
            self._accelerator.backward(loss)
            return loss.detach()
        divided = _Divided(closure, self._accelerator.gradient_accumulation_steps, self._method())
        with swaps_named("between two windows, where accelerator.sync_gradients is True"):
            self._step.backward(divided)
        assert divided.loss is not None
        return divided.loss

    def enter(self, accelerator: Any) -> None:
        """A block begins; Accelerate has said whether the optimizer steps in it.

        Args:
            accelerator: the Accelerator.

        Raises:
            RuntimeError: a number of micro-batches that changed within a step, or a data loader that ended in one.
        """
        k = accelerator.gradient_accumulation_steps
        self._accelerator, self._called = accelerator, False
        self._counted(accelerator)
        self._follow(accelerator.gradient_state)
        if self._visited == 0:
            self._num = k
            self._plain = self._coming(accelerator) < k
            if not self._plain:
                self._step = begun(self._method(), k, Differentiation(accelerator).backward)
        elif k != self._num and self._step is not None:
            raise RuntimeError(
                f"accumulate: expected gradient_accumulation_steps to stay {self._num} within a step; got {k} after "
                f"{self._visited} of its micro-batches; change it after a block in which accelerator.sync_gradients is True"
            )
        elif accelerator.sync_gradients and self._step is not None and self._visited + 1 < k:
            raise RuntimeError(
                f"accumulate: expected {k} micro-batches; got {self._visited + 1} before the data loader{self._ended()}, or "
                "accumulate over its end with GradientAccumulationPlugin(num_steps=..., sync_with_dataloader=False)"
            )
        self._visited += 1

    def leave(self, accelerator: Any) -> None:
        """A block ends.

        Args:
            accelerator: the Accelerator.

        Raises:
            RuntimeError: no call of `backward` in it.
        """
        self._accelerator = None
        if not self._called:
            raise RuntimeError("accumulate: expected one call of step.backward in each block; got none")
        if not accelerator.sync_gradients:
            return
        step, self._step, self._visited = self._step, None, 0
        if step is not None:
            step.__exit__(None, None, None)
        elif accelerator.gradient_state.end_of_dataloader:
            self._tell_of_short_pass(accelerator)
        elif not self._interrupted and not self._warned:
            self._warned = True
            warnings.warn(
                "accumulate: expected windows of fewer micro-batches, which are trained without the term, only where the data "
                "loader ends; got one before; usual causes: a data loader that was left early (break), an evaluation's for "
                "instance, which Accelerate goes on calling the active one: exhaust it; a block of accelerator.accumulate "
                "around this one or between two: each counts as a micro-batch",
                UserWarning,
                stacklevel=STACK,
            )
        self._interrupted = False

    def _tell_of_short_pass(self, accelerator: Any) -> None:
        """The data loader ended with a window that was trained plainly: it may not have had another one."""
        k, state = accelerator.gradient_accumulation_steps, accelerator.gradient_state
        if self._interrupted or not state.sync_with_dataloader or self._method().num_steps:
            return  # after an exception, where windows go on over the loader's end, and where some were aligned
        loader, nested = self._loader, ("batch_sampler", "sampler")
        # What is left of a resumed epoch tells nothing of the others.
        resumed = any(
            getattr(x, "skip_batches", 0) for x in (loader, *(getattr(loader, name, None) for name in nested))
        )
        try:
            num = len(loader)
        except TypeError:  # of an iterable data set
            return
        if num < k and not resumed:
            self._short.tell(num, k, lambda: self._method()._weight.may_act, stacklevel=STACK + 1)

    def abandon(self) -> None:
        """An exception left a block: everything as before the step."""
        step, self._step, self._visited, self._accelerator, self._interrupted = self._step, None, 0, None, True
        if step is not None:
            interrupted = InterruptedError("an exception left a block of accumulate")
            step.__exit__(InterruptedError, interrupted, None)

    def _method(self) -> Method:
        aligner = self._aligner()
        assert aligner is not None  # the caller of `accumulate` holds it
        return aligner

    def _counted(self, accelerator: Any) -> None:
        """Within a step only its own blocks move the Accelerator's count of micro-batches."""
        before, self._count = self._count, accelerator.step
        if self._step is not None and self._count not in (0, before + 1):
            raise RuntimeError(
                f"accumulate: expected the Accelerator to count one micro-batch from block to block of a step; got "
                f"{self._count - before}: two aligners, or a block of accelerator.accumulate around or between, share its "
                "count (load_state sets it); make an Accelerator for each aligner, one of which prepares the data loader, and "
                "open no other block within a step"
            )

    def _ended(self) -> str:
        """How the data loader ended before the window did, and what to do."""
        try:
            length = len(self._loader)
        except TypeError:  # of an iterable data set, or no loader
            return ", whose length is not known, ended; give it a length or drop the rest"
        return (
            f" ended, of whose {length} batches not all came to a block: those that are passed over (continue), or a length "
            "that is too large, shift the last window; leave them out of the data set"
        )

    def _follow(self, state: Any) -> None:
        """Count the place in the active data loader."""
        loader = state.active_dataloader
        # One that was left early stays among the references, and is there once more when it begins anew.
        begun = sum(reference is loader for reference in state.dataloader_references)
        if loader is not self._loader or begun != self._begun:
            self._loader, self._begun, self._place = loader, begun, getattr(loader, "skip_batches", 0)
        self._place = 0 if state.end_of_dataloader else self._place + 1

    def _coming(self, accelerator: Any) -> int:
        """How many micro-batches the window will have, this one included."""
        k, state = accelerator.gradient_accumulation_steps, accelerator.gradient_state
        if accelerator.sync_gradients:
            return 1
        coming = k - (accelerator.step - 1) % k
        if not state.sync_with_dataloader or self._loader is None:
            return coming
        try:
            left = len(self._loader) - self._place + 1
        except TypeError:  # of an iterable data set
            return coming
        return min(coming, left) if left > 0 else coming


class Differentiation:
    """`accelerator.backward` of losses that are divided already.

    Attributes:
        scaler: the Accelerator's, which scales the losses.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.scaler = accelerator.scaler

    def backward(self, loss: Tensor) -> None:
        """Differentiate a loss; it is divided by 1."""
        accelerator = self._accelerator
        steps = accelerator.gradient_accumulation_steps
        accelerator.gradient_accumulation_steps = 1
        try:
            accelerator.backward(loss)
        finally:
            accelerator.gradient_accumulation_steps = steps


class _Divided:
    """A closure whose loss carries its 1/k.

    Attributes:
        loss: of the base pass.
    """

    def __init__(self, closure: Callable[[], Tensor], k: int, aligner: Method) -> None:
        self._closure, self._k, self._aligner = closure, k, aligner
        self.loss: Tensor | None = None

    def __call__(self) -> Tensor:
        """The loss over k."""
        loss = self._closure()
        if not self._aligner.displaced:
            self.loss = loss.detach()
        return loss / self._k


_WINDOWS: WeakKeyDictionary[Method, Window] = WeakKeyDictionary()
