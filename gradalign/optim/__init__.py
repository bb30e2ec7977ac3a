"""Optimizers whose one fused step unscales, clips, skips on non-finite gradients, updates and clears.

`AdamW` and `SGD` take the arguments of torch's class of the same name (`differentiable=True` is refused) and exchange
`state_dict` with it; `LAMB` has no counterpart there. What they add is described once, in `FusedOptimizer`:

    >>> import torch
    >>> from gradalign.optim import AdamW
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0, clear="zero")
    >>> model(torch.ones(3, 4)).sum().backward()
    >>> optimizer.step()  # clips, updates and zeroes the gradients
    >>> float(model.weight.grad.abs().sum())
    0.0
"""

from gradalign.optim.adamw import AdamW
from gradalign.optim.fused import FusedOptimizer
from gradalign.optim.lamb import LAMB
from gradalign.optim.sgd import SGD

__all__ = ["LAMB", "SGD", "AdamW", "FusedOptimizer"]
