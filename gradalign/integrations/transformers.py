"""`GradAlignMixin`: alignment in any Trainer of Hugging Face Transformers, TRL's included.

The micro-batches of a step are those of `gradient_accumulation_steps`. Each loss is what the parent's `training_step` would
differentiate, so that label smoothing, `num_items_in_batch`, autocast and a subclass's own loss are the parent's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradalign.batches import shallow_copy
from gradalign.engine.method import Method
from gradalign.integrations.binding import Options
from gradalign.integrations.processes import served, several, wrapped
from gradalign.integrations.trainer_steps import SourceOf, Steps

__all__ = ["GradAlignMixin"]

STATE = "gradalign.pt"  # beside the optimizer's, in a checkpoint


class GradAlignMixin:
    """Makes a Trainer fill `.grad` with the mean gradient minus `weight` times the term of `GradAlign`.

        class AlignedTrainer(GradAlignMixin, Trainer): ...
        trainer = AlignedTrainer(..., aligner=dict(weight=0.03, objective="variance"))

    A last accumulation of an epoch with fewer micro-batches is trained plainly; a run without another one is warned of. A
    scheduled weight and `every` count `state.global_step`. What a displaced or repeated pass notes in the trainer's attributes
    (numbers, strings, tensors, containers, metrics of torchmetrics) is taken back, and `log` does nothing in it. What it writes
    elsewhere, into the trainer's `state` or a meter of your own, is not: leave that out while `trainer.aligner.displaced` is
    True. Statistics go to the trainer's logs as "align/...", at `logging_steps`. On several processes with one device each,
    micro-batch i is what all of them have as their i-th.

    All passes of a step run when the loop comes to its first micro-batch, where the estimator needs all of them
    ("leave_one_out", for instance) and where they have sources; otherwise those of each as the loop comes to it.

    Args:
        args: those of the Trainer.
        aligner: options of `GradAlign` other than the model; or a function of the model that returns an aligner or a baseline.
        source_of: the source of a micro-batch, from its inputs as the data loader gives them (what the model does not take
            is popped there, in an evaluation too); A then compares sources.
        kwargs: those of the Trainer.

    Raises:
        ValueError: `gradient_accumulation_steps` below 2.
        TypeError: options that `GradAlign` does not have; several devices in one process, shards, DeepSpeed; a class with the
            Trainer before the mixin.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(GradAlignMixin)]:
            if hasattr(base, "get_train_dataloader") and not issubclass(base, GradAlignMixin):
                raise TypeError(
                    f"{cls.__qualname__}: expected GradAlignMixin before the Trainer; got {base.__qualname__} first, whose "
                    f"training_step would run instead; write class {cls.__name__}(GradAlignMixin, {base.__name__})"
                )

    def __init__(self, *args: Any, aligner: Options, source_of: SourceOf | None = None, **kwargs: Any) -> None:
        self._gradalign = Steps(aligner, source_of, GradAlignMixin)
        owner = next(c for c in type(self).__mro__ if "training_step" in vars(c))
        self._gradalign.bypass = None if owner is GradAlignMixin else owner.__qualname__
        super().__init__(*args, **kwargs)
        _servable(self, self._gradalign)

    @property
    def aligner(self) -> Method | None:
        """The aligner of the model that is trained; None before the first step."""
        return self._gradalign.late.method

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as the parent does; a step that it leaves incomplete, by an exception for instance, is taken back.

        Args:
            args: as the parent takes them.
            kwargs: likewise.

        Returns:
            What the parent's returns.
        """
        self._gradalign.start()
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
        """The micro-batches of the next step; one that a callback left incomplete, by stopping the epoch, is over.

        Args:
            args: as the parent takes them.
            kwargs: likewise.

        Returns:
            What the parent's returns: the micro-batches, and how many items they have in all.
        """
        found = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        trainer = self._trainer
        k = trainer.args.gradient_accumulation_steps
        self._gradalign.collect(found[0], k, lambda: self._aligner_of(trainer.model_wrapped))
        return found

    def _aligner_of(self, model: nn.Module) -> Method:
        """The aligner of the module that the Trainer trains."""
        _servable(self._trainer, self._gradalign)
        return self._gradalign.late.of(_called(self._trainer, model), self._trainer.state.global_step)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """All passes of one micro-batch, or at the first of a step all of the step; the last fills `.grad`.

        Args:
            model: the module that the Trainer trains, in its wrapper where there is one.
            inputs: of the micro-batch, as the data loader gives them.
            args: what else the parent takes, the number of items of the step for instance.
            kwargs: likewise.

        Returns:
            The loss of the base pass, detached, a 0-dim tensor as the parent's returns it.

        Raises:
            ValueError: `gradient_accumulation_steps` below 2.
            TypeError: a configuration in which gradients would come out wrong.
        """
        steps, trainer = self._gradalign, self._trainer
        steps.bypass = None
        expected = trainer.args.gradient_accumulation_steps
        num = getattr(trainer, "current_gradient_accumulation_steps", expected)
        if steps.is_plain(num < expected or num < 2, num, model):
            return super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

        parent = super().training_step  # type: ignore[misc]
        model.train()
        if callable(getattr(trainer.optimizer, "train", None)):
            trainer.optimizer.train()
        return steps.visit(
            lambda: self._aligner_of(model),
            num,
            trainer,
            inputs,
            lambda x: parent(model, shallow_copy(x), *args, **kwargs),
        )

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the parent does, without what `source_of` takes out of the inputs.

        Args:
            model: as the parent takes it.
            inputs: of one batch, as the data loader gives them.
            args: what else the parent takes.
            kwargs: likewise.

        Returns:
            What the parent's returns.
        """
        inputs = self._gradalign.without_source(inputs, self._trainer.label_names or ())
        return super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a micro-batch, by the parent.

        Args:
            args: as the parent takes them.
            kwargs: likewise.

        Returns:
            What the parent's returns: the loss, with its graph; with `return_outputs=True` also the outputs.
        """
        self._gradalign.computed_loss = True
        return super().compute_loss(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the parent does, with the statistics of a step beside the loss; nothing in a displaced or repeated pass.

        Args:
            logs: name -> number.
            args: what else the parent takes, the time of the start for instance.
            kwargs: likewise.
        """
        if self._gradalign.late.displaced:
            return
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
        if checkpoint is not None:
            self._gradalign.resume()
        if checkpoint is not None and (Path(checkpoint) / STATE).exists():
            state = torch.load(Path(checkpoint) / STATE, map_location="cpu", weights_only=True)
            self._gradalign.late.load_state_dict(state)

    @property
    def _trainer(self) -> Any:
        """This object as the Trainer that it is too."""
        return self


def _called(trainer: Any, model: nn.Module) -> nn.Module:
    """The module that is the aligner's: on several processes the wrapper that the loss calls."""
    if not several(trainer.accelerator):
        return trainer.model
    wrapped([model], "let the Trainer wrap it, and pass it a model that is whole in every process")
    return model


def _servable(trainer: Any, steps: Steps) -> None:
    """The trainer's configuration is one in which gradients come out right."""
    args = trainer.args
    if args.gradient_accumulation_steps < 2 and not steps.late.off:
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
