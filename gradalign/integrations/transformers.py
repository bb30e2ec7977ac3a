"""`GradAlignMixin`: alignment in any Trainer of Hugging Face Transformers, TRL's included.

The micro-batches of a step are those of `gradient_accumulation_steps`. Each loss is what the parent's `training_step` would
differentiate, so that label smoothing, `num_items_in_batch`, autocast and a subclass's own loss are the parent's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.batches import shallow_copy
from gradalign.engine.ignored_labels import no_mean_over_nothing
from gradalign.engine.method import Method
from gradalign.engine.transaction import Accumulation
from gradalign.integrations.binding import LateAligner, Options
from gradalign.integrations.bookkeeping import taken_back
from gradalign.integrations.processes import served, several, wrapped

STATE = "gradalign.pt"  # beside the optimizer's, in a checkpoint
DATA = ("train_dataset", "eval_dataset")


class GradAlignMixin:
    """Makes a Trainer fill `.grad` with the gradient of `mean_i L_i - weight * A`.

        class AlignedTrainer(GradAlignMixin, Trainer): ...
        trainer = AlignedTrainer(..., aligner=dict(weight=0.03, objective="variance"))

    A last accumulation of an epoch with fewer micro-batches is trained plainly. A scheduled weight and `every` count
    `state.global_step`. What a displaced pass notes in the trainer, its metrics, is taken back. Statistics go to the
    trainer's logs as "align/...", at `logging_steps`. On several processes with one device each, micro-batch i is what all of
    them have as their i-th.

    Args:
        args: those of the Trainer.
        aligner: options of `GradAlign` other than the model; or a function of the model that returns an aligner or a baseline.
        kwargs: those of the Trainer.

    Raises:
        ValueError: `gradient_accumulation_steps` below 2.
        TypeError: options that `GradAlign` does not have; several devices in one process, shards, DeepSpeed.
    """

    def __init__(self, *args: Any, aligner: Options, **kwargs: Any) -> None:
        self._gradalign = _State(aligner)
        owner = next(c for c in type(self).__mro__ if "training_step" in vars(c))
        self._gradalign.bypass = None if owner is GradAlignMixin else owner.__qualname__
        super().__init__(*args, **kwargs)
        _servable(self, self._gradalign)

    @property
    def aligner(self) -> Method | None:
        """The aligner of the model that is trained; None before the first step."""
        return self._gradalign.late.method

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's."""
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._gradalign.abandon()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, after each step; one that never came here is no aligned one."""
        if self._gradalign.bypass is not None:
            raise TypeError(
                f"training_step: expected that of {self._gradalign.bypass} to call super().training_step; got one that does "
                "not, so that nothing would be aligned; define it in a class behind GradAlignMixin, or call super()"
            )
        return super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; a step that was left incomplete, by a callback that stopped the epoch, is over."""
        self._gradalign.abandon()
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """All passes of one micro-batch; the last of a step fills `.grad`."""
        state, trainer = self._gradalign, self._trainer
        state.bypass = None
        expected = trainer.args.gradient_accumulation_steps
        num = getattr(trainer, "current_gradient_accumulation_steps", expected)
        if num < expected or num < 2:
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if state.step is None:
            _servable(trainer, state)
            method = state.late.of(_called(trainer, model), trainer.state.global_step)
            state.open(method.accumulate(num, reduction="sum", backward=trainer.accelerator.backward), num)
        model.train()
        if callable(getattr(trainer.optimizer, "train", None)):
            trainer.optimizer.train()
        prepared = trainer._prepare_inputs(inputs)
        parent = super().training_step  # type: ignore[misc]
        one = MicroBatch(trainer, prepared, lambda: parent(model, shallow_copy(prepared), *args, **kwargs))
        state.backward(one)
        return one.returned

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's."""
        self._gradalign.computed_loss = True
        return super().compute_loss(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the parent's, with the statistics of a step beside the training loss."""
        if "loss" in logs:
            logs = {**logs, **self._gradalign.late.logs()}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _prepare_inputs(self, inputs: Any) -> Any:
        """As the parent's, once for each micro-batch."""
        if self._gradalign.prepared:
            return inputs
        return super()._prepare_inputs(inputs)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self._trainer.args.should_save:
            torch.save(self._gradalign.late.state_dict(), Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and (Path(checkpoint) / STATE).exists():
            state = torch.load(Path(checkpoint) / STATE, map_location="cpu", weights_only=True)
            self._gradalign.late.load_state_dict(state)

    @property
    def _trainer(self) -> Any:
        """This object as the Trainer that it is too."""
        return self


class _State:
    """What the mixin keeps, in one attribute of the Trainer.

    Attributes:
        late: the aligner.
        step: the step in progress.
        prepared: whether the inputs of the running `training_step` are prepared already.
        computed_loss: whether it called `compute_loss`.
        bypass: the class in front of the mixin whose `training_step` has not called the mixin's so far; None: there is none.
    """

    def __init__(self, options: Options) -> None:
        self.late = LateAligner(options)
        self.step: Accumulation | None = None
        self.prepared = False
        self.computed_loss = False
        self.bypass: str | None = None
        self._left = 0

    def open(self, accumulation: Accumulation, num: int) -> None:
        """Begin a step of `num` micro-batches."""
        self._left = num
        self.step = accumulation.__enter__()

    def backward(self, one: MicroBatch) -> None:
        """All passes of a micro-batch; the last one ends the step."""
        assert self.step is not None
        try:
            self.step.backward(one)
        except BaseException:
            self.step = None  # it has rolled itself back
            raise
        self._left -= 1
        if not self._left:
            step, self.step = self.step, None
            step.__exit__(None, None, None)
            self.late.complete()

    def abandon(self) -> None:
        """Roll a step back that is not complete."""
        step, self.step = self.step, None
        if step is not None:
            interrupted = InterruptedError("the trainer left a step before its last micro-batch")
            step.__exit__(InterruptedError, interrupted, None)


class MicroBatch:
    """A closure: the loss that the parent's `training_step` of one micro-batch would differentiate.

    Args:
        trainer: the Trainer.
        inputs: the prepared inputs.
        training_step: calls the parent's with them.

    Attributes:
        returned: what the parent returned in the base pass.
        micro_batch: the inputs, which have to stay as they are.
    """

    def __init__(self, trainer: Any, inputs: Any, training_step: Callable[[], Tensor]) -> None:
        self._trainer, self._training_step = trainer, training_step
        self.micro_batch = inputs
        self.returned: Any = None

    def __call__(self) -> Tensor:
        """The loss, with its graph."""
        if not self._trainer._gradalign.late.displaced:
            loss, self.returned = self._caught()
            if self._trainer.args.logging_nan_inf_filter:  # the Trainer's loop reads the loss anyway
                no_mean_over_nothing(float(loss.detach()), self.micro_batch)
            return loss
        with taken_back(self._trainer, DATA):
            return self._caught()[0]

    def _caught(self) -> tuple[Tensor, Tensor]:
        """The loss that goes to `accelerator.backward`, and what `training_step` returns."""
        accelerator, state = self._trainer.accelerator, self._trainer._gradalign
        own = vars(accelerator).get("backward")
        losses: list[Tensor] = []
        accelerator.backward = lambda loss, **kwargs: losses.append(loss)
        state.prepared, state.computed_loss = True, False
        try:
            returned = self._training_step()
        finally:
            state.prepared = False
            del accelerator.backward
            if own is not None:
                accelerator.backward = own
        owner = next(c for c in type(self._trainer).__mro__ if "compute_loss" in vars(c))
        if len(losses) == 1 and not state.computed_loss and owner is not GradAlignMixin:
            raise TypeError(
                f"compute_loss: expected the one of {owner.__qualname__} behind GradAlignMixin; got it in front, where it "
                "hides the mixin's; define it in a class of its own, class Own(Trainer), and align that: "
                "class Aligned(GradAlignMixin, Own)"
            )
        if len(losses) != 1 or not state.computed_loss:
            raise TypeError(
                f"training_step: expected one loss, from compute_loss, that goes to accelerator.backward; got {len(losses)}"
                f"{'' if state.computed_loss else ' and no call of compute_loss'}: {type(self._trainer).__qualname__} has a "
                "training_step of its own, which would draw or generate anew in a displaced pass; call aligner.backward in it"
            )
        return losses[0], returned


def _called(trainer: Any, model: nn.Module) -> nn.Module:
    """The module that is the aligner's: on several processes the wrapper that the loss calls."""
    if not several(trainer.accelerator):
        return trainer.model
    wrapped([model], "let the Trainer wrap it, and pass it a model that is whole in every process")
    return model


def _servable(trainer: Any, state: _State) -> None:
    """The trainer's configuration is one in which gradients come out right."""
    args = trainer.args
    if args.gradient_accumulation_steps < 2 and not state.late.off:
        raise ValueError(
            f"gradient_accumulation_steps: expected at least 2, since they are the micro-batches whose gradients are compared; "
            f"got {args.gradient_accumulation_steps}; set it to 8, and per_device_train_batch_size to an eighth"
        )
    served(trainer.accelerator)
    if args.n_gpu > 1:
        raise TypeError(
            f"n_gpu: expected one device in a process; got {args.n_gpu}, on which DataParallel draws random numbers that a "
            f"displaced pass cannot repeat; start a process for each, torchrun --nproc-per-node {args.n_gpu} train.py, or set "
            "CUDA_VISIBLE_DEVICES to one GPU"
        )
    if getattr(args, "activation_offloading", False):
        raise TypeError(
            "activation_offloading: expected False; got True, which keeps one forward and its backward together; use "
            "gradient_checkpointing=True"
        )
