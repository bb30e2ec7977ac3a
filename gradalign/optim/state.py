"""The state of an optimizer: made when it is needed, float32 masters, loaded without losing precision."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradalign.engine.low_precision import LOW_PRECISION
from gradalign.engine.mesh import Mesh, mesh_of
from gradalign.optim import arguments, exchange
from gradalign.optim.masters import MasterVersions, make_master


class StatefulOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` with float32 masters, whose moments are at least as wide as the settings ask for.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them with their own settings.
        defaults: settings of groups that do not have their own.
    """

    _first_moment_name = "exp_avg"
    _bias_corrected: tuple[str, ...] = ("exp_avg", "exp_avg_sq")  # running means, by the number of steps

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._master_versions = MasterVersions()
        self._masters_made = False
        self._mesh: Mesh | None = None
        arguments.settings(defaults, defaults)
        super().__init__(params, defaults)

    @abstractmethod
    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The parameter-size state that a group needs, "master" aside."""

    def _all_names(self, dtype: torch.dtype, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The state of a parameter of that dtype."""
        names = ("step", *self._state_names(group))
        return (*names, "master") if group["master_weights"] and dtype in LOW_PRECISION else names

    def _init_state(self, param: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[param]
        for name in self._all_names(param.dtype, group):
            if name in state:
                self._widen(state, name, param, group)
                continue
            if name == "master":
                state[name] = make_master(param)
            elif name == "step":
                state[name] = torch.zeros((), dtype=torch.float32, device=param.device)
            else:
                dtype = self._moment_dtype(param, group)
                state[name] = torch.zeros_like(
                    param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False
                )

    def _widen(self, state: dict[str, Any], name: str, param: Tensor, group: Mapping[str, Any]) -> None:
        """State that was made under other settings gets the precision of these."""
        if name in self._state_names(group):
            dtype = torch.promote_types(state[name].dtype, self._moment_dtype(param, group))
            state[name] = state[name].to(dtype)

    def _wide_enough(self, group: Mapping[str, Any], param: Tensor, dtypes: Mapping[str, list[torch.dtype]]) -> bool:
        """Whether moments of these dtypes, by name, have the precision that a parameter such as this one asks for."""
        least = self._moment_dtype(param, group)
        found = set().union(*(dtypes[name] for name in self._state_names(group)))
        return all(torch.promote_types(dtype, least) == dtype for dtype in found)

    @staticmethod
    def _moment_dtype(param: Tensor, group: Mapping[str, Any]) -> torch.dtype:
        widened = param.dtype in LOW_PRECISION and (group["master_weights"] or group["stochastic_rounding"])
        return torch.float32 if widened else param.dtype

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: "params" (parameters, or (name, parameter) pairs) and the settings that are the group's own.

        Raises:
            ValueError: settings out of range, or of all groups together; expanded parameters; the group is then not added.
            TypeError: settings that are no numbers; complex parameters, float16 ones with stochastic rounding.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            arguments.settings(group, self.defaults)
            arguments.parameters(group["params"], group["stochastic_rounding"])
            arguments.not_expanded(group["params"])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise
        self._masters_made = False
        self._find_mesh()

    def _find_mesh(self) -> None:
        self._mesh = mesh_of([p for group in self.param_groups for p in group["params"]])

    def _make_masters(self) -> None:
        # Not sooner: torch.distributed.checkpoint fills the state of an optimizer that has none by a step with gradients of 0.
        for group in self.param_groups:
            for p in group["params"]:
                if "master" in self._all_names(p.dtype, group):
                    self._init_state(p, group)
        self._masters_made = True

    def master(self, param: Tensor) -> Tensor | None:
        """The float32 master of a parameter, brought up to date if the parameter was changed otherwise.

        Masters are made by the first step, or by the first call of this method.

        Args:
            param: a parameter of this optimizer.

        Returns:
            The master itself, of the parameter's shape; None where the parameter has none, or was made wider since.
        """
        if not self._masters_made:
            self._make_masters()
        master = self.state[param].get("master") if param.dtype in LOW_PRECISION and param in self.state else None
        if master is not None:
            self._master_versions.follow(param, master)
        return master

    def masters_match(self, params: Iterable[Tensor]) -> None:
        """Tell the optimizer that these parameters were written and are again the rounding of their masters.

        Without this, the next step compares them: right all the same, at the price of one more pass over masters.

        Args:
            params: parameters of this optimizer; those without a master may be among them.
        """
        self._master_versions.matched(params)

    @property
    def keeps_first_moment(self) -> bool:
        """Whether a group's settings keep a running mean of the gradients."""
        return any(self._first_moment_name in self._state_names(group) for group in self.param_groups)

    def first_moment(self, param: Tensor) -> Tensor | None:
        """The running mean of the parameter's gradients, up to a factor.

        Args:
            param: a parameter of this optimizer.

        Returns:
            "exp_avg" or "momentum_buffer" itself, of the parameter's shape; None before the first step or without momentum.
        """
        return self.state[param].get(self._first_moment_name) if param in self.state else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, of this class or of torch's class of the same name; nothing is cast to a narrower dtype.

        Settings that the state dict does not know stay as they are. Tensors are copied.

        Args:
            state_dict: what `state_dict` returned.

        Raises:
            ValueError: another number of groups, or of parameters in one, than this optimizer has; state of another shape than
                its parameter; moments without a number of steps, or the other way round.
        """
        # Registered last, so that the user's own hooks see the state as it was saved.
        handle = self.register_load_state_dict_pre_hook(
            lambda _, saved: exchange.wrap_tensors(saved, self.param_groups, self._state_names)
        )
        before = vars(self).copy()
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            vars(self).update(before)  # it replaces what it loads into
            raise
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._master_versions = MasterVersions()
        self._masters_made = False
        self._find_mesh()
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    self._place_state(p, group)

    def _place_state(self, param: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[param]
        exchange.counted(state, self._bias_corrected)
        for name, value in state.items():
            least = torch.float32 if name == "master" else self._moment_dtype(param, group)
            state[name] = exchange.place_state(value, name, param, least)
