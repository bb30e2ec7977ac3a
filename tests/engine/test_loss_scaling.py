"""Who differentiates a loss, and what it is multiplied with before."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.gradients import assert_close, grads
from support.networks import Counting, make, state

from gradalign import GradAlign


def test_reduction_and_scaler_are_checked():
    model, loss_fn, batches = make(Counting)
    with pytest.raises(ValueError, match="reduction: expected one of 'mean', 'sum'; got 'max'"):
        GradAlign(model, 0.1).backward(loss_fn, batches, reduction="max")

    class Accelerator:
        scaler = torch.amp.GradScaler("cpu")

        def backward(self, loss):
            loss.backward()

    with pytest.raises(ValueError, match="scaler: expected one GradScaler"):
        GradAlign(model, 0.1, scaler=torch.amp.GradScaler("cpu")).backward(
            loss_fn, batches, backward=Accelerator().backward
        )


def test_a_custom_backward_and_a_dividing_accelerator():
    class Accelerator:
        gradient_accumulation_steps = 3
        scaler = None

        def backward(self, loss):
            (loss / self.gradient_accumulation_steps).backward()

    model, loss_fn, batches = make(Counting, k=4)
    before = state(model)
    aligner = GradAlign(model, 0.3)
    aligner.backward(loss_fn, batches)
    expected = grads(model)
    for backward in (torch.Tensor.backward, Accelerator().backward, partial(partial(Accelerator().backward))):
        model.zero_grad()
        model.load_state_dict(before)
        aligner.backward(loss_fn, batches, backward=backward)
        assert_close(grads(model), expected, rtol=1e-12)


def test_the_backward_of_a_deepspeed_engine_is_refused():
    class DeepSpeedEngine:
        def gradient_accumulation_steps(self):
            return 3

        def backward(self, loss):
            loss.backward()

    model, loss_fn, batches = make(Counting)
    with pytest.raises(TypeError, match=r"got DeepSpeedEngine.backward.*use DistributedDataParallel or fully_shard"):
        GradAlign(model, 0.1).backward(loss_fn, batches, backward=DeepSpeedEngine().backward)
