"""Which micro-batches of a step come from which source, where agreement is between sources."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from numbers import Integral

from torch import Tensor


@dataclass(frozen=True)
class Sources:
    """The micro-batches of each source, by their places in the step.

    The gradient of a source is the mean of those of its micro-batches, and sources weigh equally, however many each has.

    Attributes:
        members: of each source, in the order in which sources appear first.
    """

    members: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, labels: Sequence[Hashable]) -> Sources:
        """The sources of a step from the label of each micro-batch.

        Raises:
            ValueError: one source only.
        """
        names = list(dict.fromkeys(labels))
        if len(names) < 2:
            raise ValueError(
                f"sources: expected at least 2 different labels, to compare the gradients of sources; got {names}; give each "
                "micro-batch the name of where its samples come from, or leave sources out to compare micro-batches"
            )
        return cls(tuple(tuple(i for i, label in enumerate(labels) if label == name) for name in names))

    @property
    def num(self) -> int:
        """S, how many sources there are."""
        return len(self.members)

    @property
    def whose(self) -> dict[int, int]:
        """The source of each micro-batch, by its place."""
        return {i: s for s, places in enumerate(self.members) for i in places}

    @property
    def single(self) -> bool:
        """Whether each has one micro-batch: comparing sources is then comparing micro-batches."""
        return all(len(places) == 1 for places in self.members)

    @property
    def even(self) -> bool:
        """Whether all have as many micro-batches."""
        return len({len(places) for places in self.members}) == 1

    @property
    def mean_count(self) -> float:
        """k / S."""
        return sum(map(len, self.members)) / self.num


def labels(given: Iterable[Hashable], num: int) -> list[Hashable]:
    """One label for each of `num` micro-batches, which are compared by equality.

    Raises:
        TypeError: labels without an order, or one that is not a string, an integer or a member of an Enum.
        ValueError: another number of them.
    """
    if isinstance(given, (bytes, Set, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(
            f"sources: expected a list with one label for each of the {num} micro-batches; got {type(given).__name__}"
        )
    found = [label.item() if isinstance(label, Tensor) and label.dim() == 0 else label for label in given]
    found = [int(label) if isinstance(label, Integral) else label for label in found]
    if isinstance(given, str) or len(found) != num:
        raise ValueError(f"sources: expected one label for each of the {num} micro-batches; got {given!r}")
    for label in found:
        if not isinstance(label, (str, Integral, Enum)):
            raise TypeError(
                f"sources: expected labels that are strings, integers or members of an Enum; got {label!r} "
                f"({type(label).__name__}); pass str(label) if its text names the source"
            )
    return found
