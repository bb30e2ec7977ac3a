"""Train so that the gradients of different micro-batches agree.

One step of large-batch training sees k micro-batches with losses L_i and gradients g_i. gradalign fills `.grad` with the
mean gradient minus `weight` times a term that makes the g_i agree; with `normalize="none"` that is the gradient of
`mean_i L_i - weight * A`, where A measures how well they do. By the chain rule grad A is a sum of
Hessian-vector products; each is the difference of two gradients of the same micro-batch, at theta and a small displacement
away, so that memory stays O(n) and any model and optimizer will do.

    >>> import torch, gradalign
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> aligner = gradalign.GradAlign(model, weight=0.001)
    >>> loss_fn = lambda x: model(x).square().mean()
    >>> for large_batch in torch.randn(2, 32, 3):
    ...     loss = aligner.backward(loss_fn, gradalign.chunk(large_batch, 8))  # instead of loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()

Modules, top layer first; each imports from those below it (docs/design.md has the complete order):

    aligner      `GradAlign`; beside it `baselines`, what it is compared with, and `tuning`, which measures radius and weight
    estimators   which micro-batches are compared with which: one file each, with its options
    engine       what a step is made of: passes, displaced parameters and their way back, what happens after an exception
    objectives   what A is; `telemetry` what a step reports; `batches` how a batch is cut
    optim        optimizers with one fused step
    ops          the kernels' public schemas
    backends     which implementation runs an op, and the three: plain torch, C++ and CUDA, Triton (`kernels`)
"""

from gradalign import baselines, estimators, ops, optim, telemetry
from gradalign._version import __version__
from gradalign.aligner import GradAlign
from gradalign.batches import chunk
from gradalign.engine.transaction import Accumulation
from gradalign.telemetry import AlignmentStats
from gradalign.tuning import TuningResult, tune

__all__ = [
    "Accumulation",
    "AlignmentStats",
    "GradAlign",
    "TuningResult",
    "__version__",
    "baselines",
    "chunk",
    "estimators",
    "ops",
    "optim",
    "telemetry",
    "tune",
]
