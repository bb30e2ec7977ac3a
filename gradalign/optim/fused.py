"""The base class of the optimizers: one fused step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gradalign.backends import dispatch
from gradalign.backends.signatures import StepOptions, StepScalars, StepTensors
from gradalign.engine import validation
from gradalign.engine.devices import to_device
from gradalign.optim import arguments, gradients
from gradalign.optim.batch import Batch, DeviceScalars, group_by
from gradalign.optim.gradients import ClearedGradients, GradientScale
from gradalign.optim.state import StatefulOptimizer

CLEAR = ("none", "zero")
SHARD_SEED = 0x9E3779B9  # odd, so that no two shards of a run share a seed
DEVICE, DTYPE, LAYOUT = map(attrgetter, ("device", "dtype", "layout"))


class FusedOptimizer(StatefulOptimizer):
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
            pass (also where the step is skipped), or after the step where gradients share memory.
        skip_nonfinite: leave parameters, state and step counts alone where the global norm of the gradients is inf or NaN
            (a sum of squares beyond the range of float32 counts as inf). Costs a read of the gradients unless they are
            clipped or a GradScaler has checked them already. Where a GradScaler found inf, the step is skipped in any case.
        backend: "auto", "native", "triton" or "reference".

    Attributes:
        grad_norm: global norm of the last step's unscaled gradients before clipping, a 0-dim tensor on the device; None
            where the step did not need it.

    Raises:
        ValueError: settings out of range; `max_grad_norm`, `clear`, `skip_nonfinite` or `backend` inside a group.
        TypeError: settings that are no numbers; complex parameters, those of FSDP1, float16 ones with stochastic rounding.
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
        arguments.clip_norm(max_grad_norm)
        if clear is not None:
            validation.one_of("clear", clear, CLEAR)
        validation.one_of("backend", backend, ("auto", *dispatch.ORDER))
        self.max_grad_norm = max_grad_norm
        self.clear = clear
        self.skip_nonfinite = skip_nonfinite
        self.backend = backend
        self.grad_norm: Tensor | None = None
        self._cleared = ClearedGradients()
        super().__init__(params, defaults)

    @abstractmethod
    def _options(self, group: Mapping[str, Any], shared: dict[str, bool]) -> StepOptions:
        """The options of the step op for a group, `shared` being those that all optimizers have."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, on the parameters that have a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returns, else None.

        Raises:
            TypeError: sparse gradients; parameters of less than 16 bits, or without a floating point, with a gradient.
            ValueError: expanded parameters; parameters that were moved to another device than their state, or got another
                shape (groups before theirs are then stepped already); with `clear="zero"`, gradients that share memory with
                parameters or state.
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
        scale = gradients.gradient_scale(
            batches,
            getattr(self, "grad_scale", None),
            found_inf if isinstance(found_inf, Tensor) else None,
            self.max_grad_norm,
            self.skip_nonfinite,
            self.backend,
            self._mesh,
        )
        self.grad_norm = scale.norm
        if self.clear == "zero":
            self._cleared.check(batches)
        # A kernel that zeroes what it has read would take a shared gradient from later parameters, and zero copies only.
        as_given = self.clear == "zero" and all(batch.grads is batch.given for batch in batches)
        zero_grads = as_given and gradients.own_memory([g for batch in batches for g in batch.given])
        # All of them first: where no backend is found, nothing is stepped.
        backends = [dispatch.backend(self.backend, batch.device.type, batch.dtypes) for batch in batches]
        scalars = DeviceScalars()
        rates = self._rates(batches, scale, scalars)
        for number, (batch, rate, backend) in enumerate(zip(batches, rates, backends, strict=True)):
            self._step_batch(number, batch, scale, scalars, rate, backend, zero_grads)
        if self.clear == "zero" and not zero_grads:
            for batch in batches:
                gradients.zero(batch.given)
        if self.clear == "none":
            for batch in batches:
                for p in batch.whole:
                    p.grad = None

    def _kinds(self, group: Mapping[str, Any], params: Sequence[Tensor]) -> tuple[Iterable[Hashable], ...]:
        """What else tells parameters apart, that share settings, device and dtypes, where they are sharded."""
        return () if self._mesh is None or not group["stochastic_rounding"] else (self._mesh.layouts(params),)

    def _rates(self, batches: Sequence[Batch], scale: GradientScale, scalars: DeviceScalars) -> list[Tensor]:
        """The learning rate of every batch, on its device."""
        return [scalars(batch.group["lr"], batch.device) for batch in batches]

    def _seed(self, number: int, batch: Batch) -> int:
        """Of the stochastic rounding of a batch; every shard has its own."""
        seed = batch.group["rounding_seed"]
        if self._mesh is not None:
            seed = (seed + SHARD_SEED * self._mesh.shard_number(batch.whole[0])) % (1 << 32)
        return number << 32 | seed

    def _step_batch(
        self,
        number: int,
        batch: Batch,
        scale: GradientScale,
        scalars: DeviceScalars,
        rate: Tensor,
        backend: ModuleType,
        zero_grads: bool,
    ) -> None:
        group, device = batch.group, batch.device
        masters = batch.states("master")
        for p, master in zip(batch.whole, masters, strict=False):
            self._master_versions.follow(p, master)
        seed = None
        if group["stochastic_rounding"] and batch.params[0].dtype == torch.bfloat16:
            seed = scalars(self._seed(number, batch), device, torch.int64)
        options = self._options(group, {"maximize": group["maximize"], "zero_grads": zero_grads})
        states = list(map(batch.states, self._state_names(group)))
        unused: list[list[Tensor]] = [[]] * (len(options.states) - len(states))
        backend.step_(
            StepTensors(batch.params, batch.grads, (*states, *unused), masters, batch.states("step")),
            StepScalars(
                to_device(scale.factor, device),
                rate,
                scalars(group["weight_decay"], device),
                None if scale.skip is None else to_device(scale.skip, device),
                seed,
            ),
            options,
        )
        if masters:
            self._master_versions.matched(batch.whole)

    def _batches(self) -> list[Batch]:
        """All parameters with a gradient, their state made where it is missing, by what one op can take at once."""
        batches = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if self._mesh is not None:
                self._mesh.gradients(params)
            for (alike,) in group_by([params], map(DEVICE, params), map(DTYPE, params)):
                batches += self._batches_of(group, alike)
        return batches

    def _batches_of(self, group: Mapping[str, Any], params: list[Tensor]) -> list[Batch]:
        """Of parameters that share device and dtype."""
        arguments.precise(params[0])
        arguments.not_expanded(params)  # again: `.data` may have been set since
        names = self._all_names(params[0].dtype, group)
        grads: list[Any] = [p.grad for p in params]
        tensors, dtypes = self._columns(group, params, names)
        kinds = (map(LAYOUT, grads), map(DTYPE, grads), *dtypes, *self._kinds(group, params))
        return [self._batch(group, names, *part) for part in group_by([params, grads, *tensors], *kinds)]

    def _columns(
        self, group: Mapping[str, Any], params: Sequence[Tensor], names: Sequence[str]
    ) -> tuple[list[list[Tensor]], list[list[torch.dtype]]]:
        """The state of every name and its dtypes, made where it is missing and widened where the settings ask for it."""
        states = [self.state[p] for p in params]
        try:
            tensors = [[state[name] for state in states] for name in names]
            dtypes = [list(map(DTYPE, column)) for column in tensors]
            if self._wide_enough(group, params[0], dict(zip(names, dtypes, strict=True))):
                return tensors, dtypes
        except KeyError:
            pass
        for p in params:
            self._init_state(p, group)
        tensors = [[state[name] for state in states] for name in names]
        return tensors, [list(map(DTYPE, column)) for column in tensors]

    def _batch(
        self, group: Mapping[str, Any], names: Sequence[str], params: list, grads: list, *tensors: list[Tensor]
    ) -> Batch:
        state = dict(zip(names, tensors, strict=True))
        arguments.dense_gradients(type(self).__name__, grads)
        arguments.same_device(type(self).__name__, params[0], state)
        held = params
        if self._mesh is not None:
            local = self._mesh.local
            held, grads, state = local(params), local(grads), {name: local(ts) for name, ts in state.items()}
        return Batch(group, held, gradients.resolved(grads), state, params, grads)

    def __getstate__(self) -> dict[str, Any]:
        own = ("max_grad_norm", "clear", "skip_nonfinite", "backend")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.grad_norm = None
        self._cleared = ClearedGradients()
