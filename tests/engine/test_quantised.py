"""A quantised weight that is trained is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradalign.engine.quantised import not_quantised


def test_a_weight_of_torchao_is_refused_and_others_are_not():
    kind = type(
        "Int8QuantizedTrainingLinearWeight", (torch.Tensor,), {"__module__": "torchao.prototype.quantized_training"}
    )
    with pytest.raises(TypeError, match="got Int8QuantizedTrainingLinearWeight of torchao"):
        not_quantised(torch.zeros(2).as_subclass(kind))
    not_quantised(nn.Parameter(torch.zeros(2)))
