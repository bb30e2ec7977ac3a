"""What an estimator carries from one step to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.nn import Parameter


class Memory:
    """State of an estimator for one aligner; by default nothing.

    A step that changes it does so for good only in `commit`; `roll_back` undoes what an aborted step did.
    """

    def state_dict(self, params: Callable[[], Sequence[Parameter]], remembers: bool) -> dict[str, Any]:
        """What a resumed run needs of it.

        Args:
            params: all parameters of the models, frozen ones too: which are trained may be another when it is loaded.
            remembers: whether there will be something to remember. What there is of a parameter that is trained is there from
                the start then, since loading in place, as `torch.distributed.checkpoint` does, fills what it finds.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any], params: Callable[[], Sequence[Parameter]]) -> None:
        """Go on from a `state_dict`.

        Args:
            state: what `state_dict` returned.
            params: all parameters of the models.
        """

    def commit(self) -> None:
        """The step is complete."""

    def roll_back(self) -> None:
        """The step is aborted; may be called again after an interrupt."""
