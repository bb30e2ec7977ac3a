"""How closely a step is inspected: the first one with the term entirely, those after it less and less often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from gradalign.engine.passes import Passes
from gradalign.engine.replay import RandomWatch
from gradalign.engine.side_effects import SideEffects
from gradalign.engine.transaction import Progress


class Inspection:
    """What is inspected in one step.

    Inspecting costs time, and what a loss_fn does rarely changes during training: everything is inspected in the first step
    with the term, and a part of it 1, 2, 4, 8, ... such steps later.

    Args:
        progress: that of the method, before the step.
        active: whether the step has the term.
        num: k, the number of micro-batches.

    Attributes:
        looks: whether `looks_at` is true for any loss of the step.
    """

    def __init__(self, progress: Progress, active: bool, num: int) -> None:
        index = progress.num_aligned  # with `every`, steps that have the term need not be powers of two themselves
        self._first = active and not progress.inspected
        self._active = active
        self._sampled = active and _power_of_two(index)
        self._chosen = (index.bit_length() - 1) % num  # another loss each time
        self._unreached = progress.unreached
        self._casts_unknown = progress.casts_to_16_bit is None
        self.looks = self._first or self._sampled or self._casts_unknown

    def looks_at(self, number: int, suspicious: bool) -> bool:
        """Whether the graph of a loss of the step is looked at; without the term that of the first, once.

        Args:
            number: of the loss, displaced passes counted too.
            suspicious: whether one before it showed something that may be from outside loss_fn: another look tells.
        """
        if self._first:
            return True
        if self._sampled:
            return number == self._chosen or suspicious
        return number == 0 and self._casts_unknown

    def watches_autocast(self, radius: float | None) -> bool:
        """Whether to watch the forwards for autocast, by hooks on the models.

        Args:
            radius: what the user chose; None: the step has to know in which precision the model computes.
        """
        return self.looks or (self._active and radius is None)

    @property
    def looks_for_wrappers(self) -> bool:
        """Whether to look for wrappers of several processes that only the loss_fn knows, and at what they averaged."""
        return self._first or self._casts_unknown

    def compares_ranks(self, labelled: bool) -> bool:
        """Whether ranks compare what each was asked for: in the first step, and later where labels may differ.

        Args:
            labelled: whether this step or one before had labels, so that a rank that has none any more takes part too.
        """
        return self.looks_for_wrappers or (labelled and self._sampled)

    def observe(
        self,
        passes: Passes,
        modules: Iterable[nn.Module],
        frozen: Sequence[Tensor],
        trained: Sequence[Tensor],
        *,
        may_record: bool,
        one_by_one: bool,
    ) -> None:
        """Have the passes of a step with the term observed.

        Args:
            passes: those of the step, before the first.
            modules: the models.
            frozen: their parameters that do not require grad.
            trained: those that do, as far as they can be read. After the first step only those are looked at that had no
                gradient in the last one, so that a step without such a parameter waits for no device.
            may_record: whether a base pass may be recorded, to be evaluated again, and values may be read.
            one_by_one: whether control goes to the caller between micro-batches, who may draw random numbers there.
        """
        looks = self._first or self._sampled
        if not self._first:
            trained = [trained[i] for i in self._unreached if i < len(trained)] if self._sampled else ()
        side_effects = SideEffects(modules, frozen, looks, trained, compare_values=looks and may_record)
        random = RandomWatch() if looks and not one_by_one else None
        passes.observe(side_effects if side_effects.looks else None, may_record and self._first, random)


def _power_of_two(number: int) -> bool:
    """Whether it is 1, 2, 4, ..., or 0."""
    return number & (number - 1) == 0
