"""Other tensors in the place of the parameters, for methods that differentiate through an update of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.engine.displacement import Displacement
from gradalign.engine.passes import Closure
from gradalign.engine.space import ParamSpace


class StandIns(Displacement):
    """Calls closures with tensors of a graph where the modules have their parameters.

    A loss_fn closes over its model, so what `torch.func.functional_call` is given is a module that holds all models and calls
    the closure. Parameters themselves never move; should an interrupt keep `functional_call` from tidying up, `restore` does.
    """

    def __init__(self, space: ParamSpace, models: Iterable[nn.Module]) -> None:
        super().__init__(space)
        self._host = _Host(models)
        self._own = [(module, dict(module._parameters)) for module in self._host.modules()]
        names = {id(p): name for name, p in self._host.named_parameters()}
        self._names = [names[id(p)] for p in space.params]

    def call(self, closure: Closure, tensors: Sequence[Tensor]) -> Any:
        """What the closure returns with these tensors, one a parameter, in place of the parameters."""
        return torch.func.functional_call(self._host, dict(zip(self._names, tensors, strict=True)), (closure,))

    def restore(self) -> None:
        """Every module has its own parameters again."""
        super().restore()
        for module, own in self._own:
            if any(module._parameters.get(name) is not p for name, p in own.items()):
                module._parameters.update(own)


class _Host(nn.Module):
    """All models as submodules, with a closure for a forward."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, closure: Closure) -> Any:
        return closure()
