"""The steps of a Transformers Trainer: its micro-batches as closures, one at a time or all of a step together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from gradalign.batches import shallow_copy
from gradalign.engine.ignored_labels import no_mean_over_nothing
from gradalign.engine.method import Method
from gradalign.engine.schedule import NeedsAllError
from gradalign.engine.transaction import Accumulation
from gradalign.integrations.binding import LateAligner, Options, ShortEpochs
from gradalign.integrations.bookkeeping import taken_back
from gradalign.integrations.detached_losses import DetachedLosses

DATA = ("train_dataset", "eval_dataset")
SourceOf = Callable[[Any], Hashable]


class Steps:
    """What the mixin keeps, in one attribute of the Trainer.

    A step is given its micro-batches one at a time, as the Trainer's loop comes to them. Where the estimator has to go back to
    earlier ones, and where they have sources, all its passes run when the loop comes to the first: the Trainer has collected
    the others by then.

    Args:
        options: of the aligner.
        source_of: the source of a micro-batch; None: they have none.
        mixin: the class whose `compute_loss` is ours.

    Attributes:
        late: the aligner.
        detached_losses: looks at the losses of the first steps.
        prepared: whether the inputs of the running `training_step` are prepared already.
        computed_loss: whether it called `compute_loss`.
        bypass: the class in front of the mixin whose `training_step` has not called the mixin's so far; None: there is none.
    """

    def __init__(self, options: Options, source_of: SourceOf | None, mixin: type) -> None:
        self.late = LateAligner(options)
        self.detached_losses = DetachedLosses()
        self.mixin = mixin
        self.prepared = False
        self.computed_loss = False
        self.bypass: str | None = None
        self._source_of = source_of
        self._together = source_of is not None
        self._sources: list[Hashable] | None = None  # of the micro-batches of the step
        self._step: Accumulation | None = None
        self._left = 0  # micro-batches of the open step
        self._batches: list[Any] = []  # of the step, as the Trainer collected them
        self._returned: list[Tensor] = []  # of a step that is complete, for the rest of its micro-batches
        self._complete: Method | None = None  # whose gradient nobody has taken yet
        self._tail = False  # whether the last micro-batch was trained plainly
        self._plain = 0  # micro-batches that are left of a step that is trained plainly
        self._short = ShortEpochs("gradient_accumulation_steps")
        self._reached = False  # whether a step of the run had k micro-batches
        self._resumed = False  # whether the running epoch may lack its first micro-batches

    def start(self) -> None:
        """The Trainer begins a run."""
        self._reached = self._resumed = False

    def resume(self) -> None:
        """The Trainer goes on from a checkpoint, in the middle of an epoch perhaps."""
        self._resumed = True

    def collect(self, batches: Sequence[Any], k: int, method: Callable[[], Method]) -> None:
        """The Trainer has collected the micro-batches of the next step; one that was left incomplete is over.

        Args:
            batches: the micro-batches; fewer than k where the epoch ends.
            k: how many a step has.
            method: finds the aligner.
        """
        self.abandon()
        self._batches = list(batches)
        if len(batches) >= k:
            self._reached = True
        elif batches and not self._reached and not self._resumed:
            self._short.tell(len(batches), k, lambda: self.late.may_act(method))
        self._resumed = self._resumed and len(batches) >= k
        self._sources = None if self._source_of is None else [self._source(batch) for batch in batches]

    def _source(self, inputs: Any) -> Hashable:
        """The source of a micro-batch, as the user's function says."""
        assert self._source_of is not None
        try:
            return self._source_of(inputs)
        except KeyError as error:
            raise ValueError(
                f"source_of: expected the inputs of a micro-batch with {error}; got only {', '.join(map(str, inputs))}; "
                "TrainingArguments(remove_unused_columns=False) keeps columns that the model does not take"
            ) from error

    def without_source(self, inputs: Any, labels: Sequence[str]) -> Any:
        """The inputs of an evaluation without what `source_of` takes out: the model may not take it either.

        Args:
            inputs: of one batch.
            labels: the names of inputs that the evaluation hands to the user, which stay.
        """
        if self._source_of is None:
            return inputs
        copied = shallow_copy(inputs)
        with suppress(Exception):  # the source is of no use here, and such a batch may have none, or several
            self._source_of(copied)
        for name in labels:
            if name in inputs and name not in copied:
                copied[name] = inputs[name]
        return copied

    def is_plain(self, short: bool, num: int, model: nn.Module) -> bool:
        """Whether the next micro-batch is trained plainly.

        After a short tail of a stream whose length is not known the Trainer takes no step: its gradients go into the next one,
        which is trained plainly too.

        Args:
            short: whether its step has fewer micro-batches than others.
            num: how many it has.
            model: whose gradients tell.
        """
        begins = self._step is None and not self._returned and not self._plain
        if not short and begins and self._tail and any(p.grad is not None for p in model.parameters()):
            self._plain = num
        self._tail = short or self._plain > 0
        self._plain = max(0, self._plain - 1)
        return self._tail

    def visit(
        self, method: Callable[[], Method], num: int, trainer: Any, inputs: Any, training_step: Callable
    ) -> Tensor:
        """All passes of the next micro-batch, or of all of the step; the last fills `.grad`.

        Args:
            method: finds the aligner when a step begins.
            num: k, the number of micro-batches of the step.
            trainer: the Trainer.
            inputs: of this micro-batch.
            training_step: the parent's, of prepared inputs.

        Returns:
            what the parent's returned in the base pass.
        """
        if self._step is None and not self._returned:
            self._open(method(), num, trainer, inputs, training_step)
        if self._returned:
            return self._returned.pop(0)
        one = MicroBatch(trainer, trainer._prepare_inputs(inputs), training_step)
        self._backward(one)
        return one.returned

    def abandon(self) -> None:
        """A step that the Trainer left before its last micro-batch: everything as before it."""
        step, self._step = self._step, None
        self.detached_losses.forget()
        if step is not None:
            interrupted = InterruptedError("the trainer left a step before its last micro-batch")
            step.__exit__(InterruptedError, interrupted, None)
        if self._returned and self._complete is not None:
            for p in self._complete._models.trainable():
                p.grad = None
        self._returned, self._complete = [], None

    def _open(self, method: Method, num: int, trainer: Any, inputs: Any, training_step: Callable) -> None:
        """Begin a step, or run it where its micro-batches have to come together."""
        backward = trainer.accelerator.backward
        if not self._together:
            try:
                self._step = method.accumulate(num, reduction="sum", backward=backward).__enter__()
                self._left = num
                return
            except NeedsAllError:
                self._together = True
        if len(self._batches) != num or self._batches[0] is not inputs:
            raise TypeError(
                f"training_step: expected the {num} micro-batches that get_batch_samples collected for the step, since they "
                "are needed together; got others; use an estimator that sees every micro-batch once, and no sources"
            )
        self._no_preparation_by_place(trainer, num)
        prepared = [trainer._prepare_inputs(batch) for batch in self._batches]
        if len(set(map(id, prepared))) < len(set(map(id, self._batches))):
            raise TypeError(_prepared_alike(type(trainer).__qualname__, num))
        ones = [MicroBatch(trainer, one, training_step) for one in prepared]
        # With their inputs, which tell whether a pass has written into them.
        pairs = [(place, one.micro_batch) for place, one in enumerate(ones)]
        method.backward(lambda pair: ones[pair[0]](), pairs, reduction="sum", backward=backward, sources=self._sources)
        self._end(method)
        self._returned, self._complete = [one.returned for one in ones], method

    def _no_preparation_by_place(self, trainer: Any, num: int) -> None:
        """Refuse a trainer that prepares the inputs of the place that its loop has come to, whatever the batch.

        Those of TRL that generate do: only the `training_step` of the same class moves the place on.
        """
        own = [c for c in type(trainer).__mro__ if {"_prepare_inputs", "training_step"} <= vars(c).keys()]
        generating = [c for c in own if c is not self.mixin and c.__module__.partition(".")[0] != "transformers"]
        if generating:
            raise TypeError(_prepared_alike(generating[0].__qualname__, num))

    def _end(self, method: Method | None) -> None:
        """A step is complete."""
        self.late.complete()
        if method is not None and method.stats is not None:
            self.detached_losses.judge(method.stats, told=method._doubted)

    def _backward(self, one: MicroBatch) -> None:
        """All passes of a micro-batch; the last one ends the step."""
        assert self._step is not None
        try:
            self._step.backward(one)
        except BaseException:
            self._step = None  # it has rolled itself back
            raise
        self._left -= 1
        if not self._left:
            step, self._step = self._step, None
            step.__exit__(None, None, None)
            self._end(self.late.method)


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

    def __init__(self, trainer: Any, inputs: Any, training_step: Callable[[Any], Tensor]) -> None:
        self._trainer, self._training_step = trainer, training_step
        self.micro_batch = inputs
        self.returned: Any = None
        self._losses = trainer._gradalign.detached_losses.begin()

    def __call__(self) -> Tensor:
        """The loss, with its graph."""
        if not self._trainer._gradalign.late.displaced:
            loss, self.returned = self._caught()
            self._losses.note(loss, displaced=False)
            if self._trainer.args.logging_nan_inf_filter:  # the Trainer's loop reads the loss anyway
                no_mean_over_nothing(float(loss.detach()), self.micro_batch)
            return loss
        with taken_back(self._trainer, DATA):
            loss, _ = self._caught()
            self._losses.note(loss, displaced=True)
            return loss

    def _caught(self) -> tuple[Tensor, Tensor]:
        """The loss that goes to `accelerator.backward`, and what `training_step` returns."""
        accelerator, state = self._trainer.accelerator, self._trainer._gradalign
        own = vars(accelerator).get("backward")
        losses: list[Tensor] = []
        accelerator.backward = lambda loss, **kwargs: losses.append(loss)
        state.prepared, state.computed_loss = True, False
        try:
            returned = self._training_step(self.micro_batch)
        finally:
            state.prepared = False
            del accelerator.backward
            if own is not None:
                accelerator.backward = own
        owner = next(c for c in type(self._trainer).__mro__ if "compute_loss" in vars(c))
        if len(losses) == 1 and not state.computed_loss and owner is not state.mixin:
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


def _prepared_alike(owner: str, num: int) -> str:
    return (
        f"aligner: expected an estimator that sees every micro-batch once, and no source_of, since {owner} has a "
        f"_prepare_inputs of its own, which generates or picks by a counter; got one that needs the {num} of a step together, "
        'which would then all be the same; use the estimator "split", "prefix" or "momentum", without source_of; where it only '
        "converts inputs, let a class without a training_step of its own define it, or the data collator do it"
    )
