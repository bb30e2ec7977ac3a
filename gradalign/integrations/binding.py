"""An aligner that is made when the model to train is known, and again when there is another one."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from gradalign.aligner import GradAlign
from gradalign.engine.method import Method
from gradalign.engine.schedule import NeedsAllError
from gradalign.engine.transaction import Accumulation
from gradalign.telemetry import AlignmentStats, logs

Options = Mapping[str, Any] | Callable[[nn.Module], Method]


def begun(method: Method, k: int, backward: Callable[[Tensor], Any]) -> Accumulation:
    """A step over the next k micro-batches, whose losses carry their 1/k.

    Raises:
        NeedsAllError: an estimator that needs them all at once, with those that do not.
    """
    try:
        return method.accumulate(k, reduction="sum", backward=backward).__enter__()
    except NeedsAllError as error:
        raise NeedsAllError(
            f'{error}, as docs/trainers.md does with large batches, or the estimator "split", "prefix" or "momentum"'
        ) from None


@contextmanager
def swaps_named(when: str) -> Iterator[None]:
    """Where parameters were written between two micro-batches, the error names what loops with a validation do there.

    Args:
        when: between which steps it may swap weights, in the words of the trainer.

    Raises:
        RuntimeError: that of the step, with this cause and its remedy.
    """
    try:
        yield
    except RuntimeError as error:
        if not WRITTEN.match(str(error)):
            raise
        raise RuntimeError(
            f"{error}. A validation that swaps weights (an EMA's) by load_state_dict or copy_ writes them too, though it puts "
            f"them back: run it {when}, or swap through p.data = ..."
        ) from error


WRITTEN = re.compile(r"accumulate: expected .* got changed (\.grad and )?parameters;")  # as the step says it


class ShortEpochs:
    """Warns, once, of an epoch with fewer micro-batches than a step needs, in which nothing is aligned.

    Args:
        option: what the trainer calls k.
    """

    def __init__(self, option: str) -> None:
        self._option, self._told = option, False

    def tell(self, num: int, k: int, may_act: Callable[[], bool], stacklevel: int = 2) -> None:
        """A whole epoch is short.

        Args:
            num: how many micro-batches it has.
            k: how many a step has.
            may_act: whether any step may have the term.
            stacklevel: from the caller to the line that is named.
        """
        if self._told or not may_act():
            return
        self._told = True
        warnings.warn(
            f"{self._option}: expected windows of k = {k} micro-batches, whose gradients are compared; got epochs of {num}, "
            f"none of which has k, so that nothing of them is aligned; lower {self._option}, or use more data",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


class LateAligner:
    """Makes the aligner of a model, keeps it in step with a trainer, and says what is worth logging.

    Args:
        options: those of `GradAlign`, or a function of the model that returns an aligner or a baseline.

    Raises:
        TypeError: neither of the two; an option that `GradAlign` does not have, or no weight.
    """

    def __init__(self, options: Options) -> None:
        if not isinstance(options, Mapping) and not callable(options):
            raise TypeError(
                f"aligner: expected options of GradAlign, such as dict(weight=0.03, objective='variance'), or a function of "
                f"the model; got {type(options).__name__}"
            )
        if isinstance(options, Mapping):
            try:
                inspect.signature(GradAlign).bind(None, **options)
            except TypeError as error:
                raise TypeError(f"aligner: expected options of GradAlign; got {sorted(options)}: {error}") from error
        self._options = options
        self._model: nn.Module | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._stats: AlignmentStats | None = None
        self.method: Method | None = None

    @property
    def off(self) -> bool:
        """Whether the weight is the number 0, so that a loop without accumulation is no mistake."""
        return isinstance(self._options, Mapping) and self._options["weight"] == 0

    def may_act(self, method: Callable[[], Method]) -> bool:
        """Whether any step may have the term.

        Args:
            method: finds the aligner, whose weight nobody else knows where a function makes it.
        """
        return not self.off if isinstance(self._options, Mapping) else method()._weight.may_act

    @property
    def displaced(self) -> bool:
        """Whether a displaced pass is running."""
        return self.method is not None and self.method.displaced

    def of(self, model: nn.Module, num_steps: int, **own: Any) -> Method:
        """The aligner of a model.

        Args:
            model: the one that is trained now.
            num_steps: optimizer steps that the trainer has made, which a scheduled weight and `every` count.
            own: options that the trainer knows, such as its scaler.
        """
        if self.method is None or self._model is not model:
            options = self._options
            self.method = GradAlign(model, **{**own, **options}) if isinstance(options, Mapping) else options(model)
            self._model = model
        method = self.method
        if self._loaded is not None:
            method.load_state_dict({**self._loaded, "num_steps": num_steps})
            self._loaded = None
        elif method.num_steps != num_steps:  # the trainer made steps without it; what an estimator remembers stays
            Method.load_state_dict(method, {"num_steps": num_steps})
        return method

    def complete(self) -> None:
        """A step is complete: its statistics are logged next, unless it had no term and an earlier one had."""
        stats = None if self.method is None else self.method.stats
        if stats is not None and (stats.radius is not None or self._stats is None or self._stats.radius is None):
            self._stats = stats

    def logs(self) -> dict[str, float]:
        """Of the last step with the term since the last call, or else of the last step; empty where there was none."""
        stats, self._stats = self._stats, None
        return {} if stats is None else logs(stats)

    def state_dict(self) -> dict[str, Any]:
        """That of the aligner; what was loaded, where no step followed."""
        if self.method is None or self._loaded is not None:
            return dict(self._loaded or {})
        return self.method.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`, once there is a model."""
        self._loaded = state
