"""One step of a method, in either of its two ways."""

from __future__ import annotations

import torch


def run(method, loss_fn, batches, how="backward", between=lambda: None):
    """Fill `.grad` in one call or one micro-batch at a time; returns the mean loss.

    Args:
        method: a `GradAlign` or a baseline.
        loss_fn: micro_batch -> loss.
        batches: the micro-batches.
        how: "backward" or "accumulate".
        between: called after each micro-batch of `accumulate`.
    """
    if how == "backward":
        return method.backward(loss_fn, batches)
    losses = []
    with method.accumulate(len(batches)) as step:
        for batch in batches:
            losses.append(step.backward(lambda batch=batch: loss_fn(batch)))
            between()
    return torch.stack(losses).mean()
