"""What an estimator carries from one step to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.nn import Parameter


class Memory:
    """State of an estimator for one aligner; by default nothing.

    A step that changes it does so for good only in `commit`; `roll_back` undoes what an aborted step did.
    """

    def state_dict(self, trained: Callable[[], Sequence[Parameter]]) -> dict[str, Any]:
        """What a resumed run needs of it.

        Args:
            trained: the parameters that are trained, none where nothing will be remembered. What there is of a parameter is
                there from the start, since loading in place, as `torch.distributed.checkpoint` does, fills what it finds.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""

    def commit(self) -> None:
        """The step is complete."""

    def roll_back(self) -> None:
        """The step is aborted; may be called again after an interrupt."""
