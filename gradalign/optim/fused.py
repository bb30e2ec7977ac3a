"""The optimizer that all of them are: state, settings and one fused step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradalign import checks, dispatch, step_checks
from gradalign.optim import exchange
from gradalign.optim.batch import Batch, DeviceScalars, moved
from gradalign.optim.gradients import GradientScale, gradient_scale
from gradalign.optim.masters import LOW_PRECISION, MasterVersions, make_master

CLEAR = ("none", "zero")


class FusedOptimizer(torch.optim.Optimizer):
    """A `torch.optim.Optimizer` that unscales, clips, skips, updates and clears in one pass over memory.

    Where a norm is needed, one more read of the gradients comes first. Nothing is read back to the host: learning rate,
    decay, clip norm and loss scale may be tensors, and a skipped step is selected on the device. A GradScaler hands its
    scale over (`scaler.step(optimizer)` with no synchronisation); its scaled gradients stay scaled in `.grad`.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them with their own settings.
        defaults: settings of groups that do not have their own.
        max_grad_norm: clip the gradients of all groups together to this norm, as `torch.nn.utils.clip_grad_norm_` does;
            float or tensor; inf measures the norm only; None does not clip.
        clear: what becomes of the gradients: None leaves them, "none" sets `.grad` to None, "zero" writes zeros in the same
            pass (also where the step is skipped).
        skip_nonfinite: leave parameters, state and step counts alone where the global norm of the gradients is inf or NaN
            (a sum of squares beyond the range of float32 counts as inf). Costs a read of the gradients unless they are
            clipped or a GradScaler has looked already. A GradScaler's verdict is honoured whatever is set here.
        backend: "auto", "native", "triton" or "reference".

    Attributes:
        grad_norm: global norm of the last step's unscaled gradients before clipping, a 0-dim tensor on the device; None
            where the step did not need it.

    Raises:
        ValueError: settings out of range.
        TypeError: complex or sharded parameters, float16 parameters with stochastic rounding.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        max_grad_norm: float | Tensor | None,
        clear: str | None,
        skip_nonfinite: bool,
        backend: str,
    ) -> None:
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm: expected a number above 0, or None to not clip; got {max_grad_norm!r}")
        if clear is not None:
            checks.one_of("clear", clear, CLEAR)
        checks.one_of("backend", backend, ("auto", *dispatch.ORDER))
        self.max_grad_norm = max_grad_norm
        self.clear = clear
        self.skip_nonfinite = skip_nonfinite
        self.backend = backend
        self.grad_norm: Tensor | None = None
        self._master_versions = MasterVersions()
        self._check_settings(defaults)
        super().__init__(params, defaults)

    @abstractmethod
    def _state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The parameter-size state that a group needs, "master" aside."""

    @abstractmethod
    def _update(self, ops: ModuleType, batch: Batch, *args: Any, **kwargs: Any) -> None:
        """Call the step op: `args` are grad_scale, lr, weight_decay, skip and seed, `kwargs` what else all of them take."""

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise ValueError for settings out of range."""
        step_checks.settings(settings)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, on the parameters that have a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returns, else None.

        Raises:
            TypeError: sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        self.grad_norm = None
        batches = self._batches()
        if not batches:
            return
        found_inf = getattr(self, "found_inf", None)
        scale = gradient_scale(
            batches,
            getattr(self, "grad_scale", None),
            found_inf if isinstance(found_inf, Tensor) else None,
            self.max_grad_norm,
            self.skip_nonfinite,
            self.backend,
        )
        self.grad_norm = scale.norm
        scalars = DeviceScalars()
        for number, batch in enumerate(batches):
            self._step_batch(number, batch, scale, scalars)
        if self.clear == "none":
            for batch in batches:
                for p in batch.params:
                    p.grad = None

    def _step_batch(self, number: int, batch: Batch, scale: GradientScale, scalars: DeviceScalars) -> None:
        group, device = batch.group, batch.device
        masters = batch.states("master")
        for p, master in zip(batch.params, masters, strict=False):
            self._master_versions.follow(p, master)
        seed = None
        if group["stochastic_rounding"] and batch.params[0].dtype == torch.bfloat16:
            seed = scalars((number << 32) | group["rounding_seed"], device, torch.int64)
        self._update(
            dispatch.backend(self.backend, device.type, batch.dtypes),
            batch,
            moved(scale.factor, device),
            scalars(group["lr"], device),
            scalars(group["weight_decay"], device),
            None if scale.skip is None else moved(scale.skip, device),
            seed,
            maximize=group["maximize"],
            zero_grads=self.clear == "zero",
        )
        if masters:
            self._master_versions.matched(batch.params)

    def _batches(self) -> list[Batch]:
        """All parameters with a gradient, their state made where it is missing, by what one op can take at once."""
        batches = []
        for group in self.param_groups:
            rows: dict[tuple, list[tuple[Tensor, ...]]] = {}
            for p in group["params"]:
                grad = p.grad
                if grad is None:
                    continue
                row = (p, grad, *self._state_of(p, group))
                rows.setdefault((p.device, grad.layout, *[t.dtype for t in row]), []).append(row)
            for members in rows.values():
                params, grads, *state = map(list, zip(*members, strict=True))
                step_checks.dense_gradients(type(self).__name__, grads)
                batches.append(
                    Batch(group, params, grads, dict(zip(self._all_names(params[0], group), state, strict=True)))
                )
        return batches

    def _state_of(self, param: Tensor, group: Mapping[str, Any]) -> list[Tensor]:
        state = self.state[param]
        names = self._all_names(param, group)
        try:
            return [state[name] for name in names]
        except KeyError:
            self._init_state(param, group)
            return [state[name] for name in names]

    def _all_names(self, param: Tensor, group: Mapping[str, Any]) -> tuple[str, ...]:
        names = ("step", *self._state_names(group))
        return (*names, "master") if group["master_weights"] and param.dtype in LOW_PRECISION else names

    def _init_state(self, param: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[param]
        for name in self._all_names(param, group):
            if name in state:
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

    @staticmethod
    def _moment_dtype(param: Tensor, group: Mapping[str, Any]) -> torch.dtype:
        widened = param.dtype in LOW_PRECISION and (group["master_weights"] or group["stochastic_rounding"])
        return torch.float32 if widened else param.dtype

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; their float32 masters, if asked for, are made here."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check_settings(group)
            step_checks.parameters(group["params"], stochastic=group["stochastic_rounding"])
        except (TypeError, ValueError):
            del self.param_groups[-1]
            raise
        self._make_masters(group)

    def _make_masters(self, group: Mapping[str, Any]) -> None:
        for p in group["params"]:
            if "master" in self._all_names(p, group):
                self._init_state(p, group)

    def master(self, param: Tensor) -> Tensor | None:
        """The float32 master of a parameter, brought up to date if the parameter was changed otherwise; None without one."""
        master = self.state[param].get("master") if param in self.state else None
        if master is not None:
            self._master_versions.follow(param, master)
        return master

    def masters_match(self, params: Iterable[Tensor]) -> None:
        """Tell the optimizer that these parameters were written and are again the rounding of their masters.

        Without this, the next step compares them: right all the same, at the price of one more pass over masters.
        """
        self._master_versions.matched(params)

    def first_moment(self, param: Tensor) -> Tensor | None:
        """The running mean of the parameter's gradients, up to a factor; None where there is none (yet)."""
        return self.state[param].get(self._first_moment_name) if param in self.state else None

    _first_moment_name = "exp_avg"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, of this class or of torch's class of the same name; nothing is cast to a narrower dtype.

        Settings that the state dict does not know stay as they are. Tensors are copied.
        """
        # Registered last, so that the user's own hooks see the state as it was saved.
        handle = self.register_load_state_dict_pre_hook(lambda _, saved: exchange.wrapped(saved, self.param_groups))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        own = ("max_grad_norm", "clear", "skip_nonfinite", "backend")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.grad_norm = None
        self._master_versions = MasterVersions()
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.state:
                    self._place_state(p, group)
            self._make_masters(group)

    def _place_state(self, param: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[param]
        for name, value in state.items():
            least = torch.float32 if name == "master" else self._moment_dtype(param, group)
            state[name] = exchange.placed(value, name, param, least)
