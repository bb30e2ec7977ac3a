"""`GradAlignCallback`: alignment under Lightning's automatic optimization.

The micro-batches of a step are those of `accumulate_grad_batches`. The module, its optimizers, gradient clipping, the precision
plugin and the loop stay as they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from gradalign.batches import shallow_copy
from gradalign.engine.method import Method
from gradalign.engine.transaction import Accumulation
from gradalign.integrations.binding import LateAligner, Options, ShortEpochs, begun, swaps_named
from gradalign.integrations.bookkeeping import taken_back
from gradalign.integrations.processes import OWN_LOOP

__all__ = ["GradAlignCallback"]

OF_THE_STRATEGY = ("training_step",)  # where it opens autocast and, on several processes, calls the wrapper
OF_THE_MODULE = ("backward", "optimizer_zero_grad", "log")
OF_THE_LOOP = ("_on_before_zero_grad",)  # calls the hook of the callbacks and that of the module


class GradAlignCallback(Callback):
    """Makes a `lightning.Trainer` fill `.grad` with the mean gradient minus `weight` times the term of `GradAlign`.

        Trainer(..., accumulate_grad_batches=8, callbacks=[GradAlignCallback(dict(weight=0.03, objective="variance"))])

    All passes run where the strategy calls `training_step`, whose loss Lightning's own backward then leaves alone: each closure
    is the module's `training_step` over k, as Lightning divides it. A last accumulation of an epoch with fewer micro-batches is
    trained plainly; an epoch without another one is warned of. A scheduled weight and `every` count `trainer.global_step`. What
    a displaced pass logs, or notes in the module and in metrics of torchmetrics, is taken back. Statistics go to the trainer's
    loggers, every `log_every_n_steps`.
    With `strategy="ddp"`, micro-batch i is what all processes have as their i-th.

    Args:
        aligner: options of `GradAlign` other than the model; or a function of the model that returns an aligner or a baseline.

    Raises:
        TypeError: options that `GradAlign` does not have; at the start of the training: manual optimization, shards, DeepSpeed.
        ValueError: at the start of the training: `accumulate_grad_batches` below 2.
    """

    def __init__(self, aligner: Options) -> None:
        self._late = LateAligner(aligner)
        self._short = ShortEpochs("accumulate_grad_batches")
        self._owners: dict[str, Any] = {}  # of what is replaced meanwhile: the module, its strategy and its loop
        self._originals: dict[str, Callable] = {}
        self._own: dict[str, Any] = {}  # what of it the owners had themselves, and not from their classes
        self._step: Accumulation | None = None
        self._batch_idx = 0
        self._aligned: int | None = None  # the last batch that was trained with the term
        self._differentiating = False
        self._logged = 0

    @property
    def aligner(self) -> Method | None:
        """The aligner of the module that is trained; None before the first step."""
        return self._late.method

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs.

        Returns:
            The state of the aligner; before there is one, what was loaded.
        """
        return self._late.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Args:
            state_dict: what `state_dict` returned.
        """
        self._late.load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put our methods in the places of the module's, the strategy's and the loop's."""
        _servable(trainer, pl_module, self._late.off)
        self._logged = trainer.global_step
        loop = trainer.fit_loop.epoch_loop.automatic_optimization
        self._owners = dict.fromkeys(OF_THE_STRATEGY, trainer.strategy) | dict.fromkeys(OF_THE_MODULE, pl_module)
        self._owners |= dict.fromkeys(OF_THE_LOOP, loop)
        self._originals = {name: getattr(owner, name) for name, owner in self._owners.items()}
        self._own = {name: vars(owner)[name] for name, owner in self._owners.items() if name in vars(owner)}
        for name, original in self._originals.items():
            ours = functools.partial(getattr(self, f"_{name.removeprefix('_')}"), pl_module)
            setattr(self._owners[name], name, _Replacement(self._owners[name], name, original, ours))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember which batch it is."""
        self._batch_idx, self._aligned = batch_idx, None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the trainer's interval, when its optimizer has stepped."""
        every = trainer.log_every_n_steps
        if not every or trainer.global_step == self._logged or trainer.global_step % every:
            return
        self._logged = trainer.global_step
        if trainer.loggers and (found := self._late.logs()):
            for logger in trainer.loggers:
                logger.log_metrics(found, step=trainer.global_step - 1)  # as Lightning counts: the first step is 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take our methods out."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Everything as before the step."""
        self._leave()

    def _leave(self) -> None:
        self._abandon()
        for name in self._originals:
            delattr(self._owners[name], name)
            if name in self._own:
                setattr(self._owners[name], name, self._own[name])
        self._originals, self._owners, self._own = {}, {}, {}

    def _abandon(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            interrupted = InterruptedError("the trainer left a step before its last micro-batch")
            step.__exit__(InterruptedError, interrupted, None)

    def _training_step(self, module: LightningModule, *args: Any, **kwargs: Any) -> Any:
        """All passes of one micro-batch; returns what the strategy's own returns, the loss detached."""
        trainer, k = module.trainer, module.trainer.accumulate_grad_batches
        # StochasticWeightAveraging renews BatchNorm's statistics; LearningRateFinder trains without callbacks
        if trainer.fit_loop._skip_backward or not self._called_by(trainer):
            return self._originals["training_step"](*args, **kwargs)
        if self._aligned == self._batch_idx:
            raise TypeError(
                "optimizer: expected one that evaluates its closure once; got another evaluation of the same batch, as LBFGS "
                "does; use an optimizer without line search"
            )
        place = self._batch_idx % k
        if place == 0:
            self._abandon()
            batches = trainer.num_training_batches
            if k > 1 and batches - self._batch_idx >= k:
                self._begin(module, k)
            elif batches < k:  # the whole epoch, not only what is left of it
                self._short.tell(int(batches), k, lambda: self._late.may_act(lambda: self._method(trainer)))
        if self._step is None:
            return self._originals["training_step"](*args, **kwargs)
        if trainer.is_last_batch and place + 1 < k:
            raise RuntimeError(
                f"accumulate_grad_batches: expected {k} micro-batches; got {place + 1} before the data loader, whose length is "
                f"not known, ended; give it a length, or set limit_train_batches to a multiple of {k}"
            )
        self._aligned = self._batch_idx

        def training_step() -> Any:
            given = {name: shallow_copy(value) for name, value in kwargs.items()}
            return self._originals["training_step"](*map(shallow_copy, args), **given)

        one = _MicroBatch(self, module, k, training_step)
        with swaps_named(f"after a step, with val_check_interval a multiple of accumulate_grad_batches, {k}"):
            self._step.backward(one)
        if place + 1 == k:
            step, self._step = self._step, None
            step.__exit__(None, None, None)
            self._late.complete()
        return one.output

    def _begin(self, module: LightningModule, k: int) -> None:
        """Call the hooks before it and clear the gradients, as Lightning would only after `training_step`; begin a step."""
        trainer = module.trainer
        _servable(trainer, module, self._late.off)
        self._originals["_on_before_zero_grad"](trainer.optimizers[0])  # while the last step's gradients are there
        self._originals["optimizer_zero_grad"](trainer.current_epoch, self._batch_idx, trainer.optimizers[0])
        self._step = begun(self._method(trainer), k, Differentiation(self, module).backward)

    def _method(self, trainer: Trainer) -> Method:
        return self._late.of(trainer.strategy.model, trainer.global_step)

    def _backward(self, module: LightningModule, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Nothing where the gradient is in `.grad` already."""
        if self._differentiating or not self._trained(module):
            self._originals["backward"](loss, *args, **kwargs)

    def _optimizer_zero_grad(self, module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Nothing where that was done before the first micro-batch."""
        if not self._trained(module):
            self._originals["optimizer_zero_grad"](*args, **kwargs)

    def _on_before_zero_grad(self, module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Nothing where the hooks were called before the first micro-batch, when the last step's gradients were there."""
        if not self._trained(module):
            self._originals["_on_before_zero_grad"](*args, **kwargs)

    def _called_by(self, trainer: Trainer) -> bool:
        return any(callback is self for callback in trainer.callbacks)

    def _trained(self, module: LightningModule) -> bool:
        """Whether all passes of the current micro-batch have run here."""
        return self._aligned == self._batch_idx and self._called_by(module.trainer)

    def _log(self, module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Nothing in a displaced pass."""
        if not self._late.displaced:
            self._originals["log"](*args, **kwargs)


class Differentiation:
    """How Lightning differentiates: the precision plugin's loss scale, then the module's own backward.

    Attributes:
        scaler: the precision plugin's, which scales the losses.
    """

    def __init__(self, callback: GradAlignCallback, module: LightningModule) -> None:
        self._callback, self._module = callback, module
        self._plugin = module.trainer.precision_plugin
        self.scaler = getattr(self._plugin, "scaler", None)

    def backward(self, loss: Tensor) -> None:
        """Differentiate a loss."""
        self._callback._differentiating = True
        try:
            scaled = loss if self.scaler is None else self.scaler.scale(loss)
            self._plugin.backward(scaled, self._module, None)
        finally:
            self._callback._differentiating = False


class _MicroBatch:
    """A closure: the loss of one micro-batch over k.

    Args:
        callback: the callback.
        module: the module.
        k: the number of micro-batches.
        training_step: calls the strategy's own.

    Attributes:
        output: what the base pass returned, the loss detached.
    """

    def __init__(self, callback: GradAlignCallback, module: LightningModule, k: int, training_step: Callable) -> None:
        self._callback, self._module, self._k, self._training_step = callback, module, k, training_step
        self.output: Any = None

    def __call__(self) -> Tensor:
        """The loss, with its graph."""
        if self._callback._late.displaced:
            with taken_back(self._module):
                return _loss(self._training_step()) / self._k
        output = self._training_step()
        loss = _loss(output)
        self.output = {**output, "loss": loss.detach()} if isinstance(output, Mapping) else loss.detach()
        return loss / self._k


def _loss(output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"training_step: expected a loss, or a dict with one; got {type(loss).__name__}; a micro-batch of a step cannot "
            "be skipped: leave it out of the data loader"
        )
    return loss


class _Replacement:
    """Our function in the place of an object's method; Lightning can look into it as into a decorated one.

    Copied or pickled with the object, an EMA's copy for instance, it becomes the method of the copy.
    """

    def __init__(self, owner: object, name: str, original: Callable, ours: Callable) -> None:
        functools.update_wrapper(self, original)
        self._owner, self._name, self._ours = owner, name, ours

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What ours does."""
        return self._ours(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable, tuple[object, str]]:
        return getattr, (self._owner, self._name)


def _servable(trainer: Trainer, module: LightningModule, off: bool) -> None:
    """The trainer's configuration is one in which gradients come out right."""
    strategy = trainer.strategy
    name = type(strategy).__name__
    if "DeepSpeed" in name:
        raise TypeError(
            f"strategy: expected training without DeepSpeed; got {name}, whose engine scales, reduces and partitions "
            'gradients inside its own backward, so that no step can be put together from several; use strategy="ddp"'
        )
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or "XLA" in name:
        raise TypeError(
            f'strategy: expected one device, or strategy="ddp" for several; got {name}, whose gradients of single passes '
            f'cannot be kept apart here; use strategy="ddp", or {OWN_LOOP}'
        )
    if not module.automatic_optimization:
        raise TypeError(
            "automatic_optimization: expected True; got False, where the module calls its own backward; call "
            "aligner.backward(..., backward=self.manual_backward) in training_step instead of using this callback"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise TypeError(
            "training_step: expected one that takes its batch; got one that takes dataloader_iter and draws batches itself, so "
            "that a displaced pass would draw another; write training_step(self, batch, batch_idx)"
        )
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        return  # epochs in which it accumulates nothing are trained plainly
    if trainer.accumulate_grad_batches < 2 and not off:
        raise ValueError(
            "accumulate_grad_batches: expected at least 2, since they are the micro-batches whose gradients are compared; got "
            f"{trainer.accumulate_grad_batches}; set it to 8, and the batch size of the data loader to an eighth"
        )
