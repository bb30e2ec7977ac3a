"""A loss that is NaN because its micro-batch has no label at all: the mean over no element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

IGNORED = -100  # torch's ignore_index


def no_mean_over_nothing(loss: float, micro_batch: Any) -> None:
    """A loss that is NaN does not come from a micro-batch whose labels are all ignored.

    Args:
        loss: of a base pass.
        micro_batch: its micro-batch; labels are integer tensors named "labels" in a mapping, or the last of a tuple or list.

    Raises:
        ValueError: it does.
    """
    if loss == loss:
        return
    labels = _labels(micro_batch)
    if labels is None or bool((labels != IGNORED).any()):
        return
    raise ValueError(
        f"loss_fn: expected a micro-batch with labels; got one of shape {tuple(labels.shape)} whose labels are all {IGNORED}, "
        "the mean over which is NaN; divide every micro-batch's sum by the number of labels in all micro-batches of the step "
        '(reduction="sum"; a Trainer does so where the model takes num_items_in_batch), or leave such rows out'
    )


def _labels(micro_batch: Any) -> Tensor | None:
    if isinstance(micro_batch, Mapping):
        found = micro_batch.get("labels")
    elif isinstance(micro_batch, (tuple, list)) and micro_batch:
        found = micro_batch[-1]
    else:
        found = None
    integers = isinstance(found, Tensor) and not found.is_floating_point() and found.numel()
    return found if integers else None
