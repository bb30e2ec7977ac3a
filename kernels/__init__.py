"""Triton kernels for CUDA and ROCm, installed as `gradalign.kernels`.

An op is a *block*, a function of 1024 elements that knows nothing of addresses, tails or alignment. Everything else is shared:

    tensor_lists  addresses, dtypes and layouts of a list of tensors, cached from call to call
    plan          how the tensors are cut into chunks
    tables        addresses and chunks on the device
    sweep         the one kernel: runs a block over a chunk, 16 bytes per access where the addresses allow it
    launch        the one launcher, which also bumps the version counters
    sums          the second stage of the reductions
    run           an op: tables, launches, sums, and copies of tensors whose layout needs one
    rounding      from float32 to the storage dtype, to nearest or stochastically
    advance       the per-tensor scalars of the optimizer steps

and the ops are `norm_dot`, `perturb`, `restore`, `swap`, `accumulate`, `combine`, `adamw_step`, `sgd_step` and `lamb_step`, one
file each. A new op is one such file and one line below. Importing this package imports Triton; `gradalign.backends.triton`
does so when it is asked for an op.
"""

from gradalign.kernels.accumulate import accumulate_
from gradalign.kernels.adamw_step import adamw_step_
from gradalign.kernels.combine import combine_
from gradalign.kernels.lamb_step import lamb_step_
from gradalign.kernels.norm_dot import norm_dot
from gradalign.kernels.perturb import perturb_
from gradalign.kernels.restore import restore_
from gradalign.kernels.sgd_step import sgd_step_
from gradalign.kernels.swap import swap_

__all__ = [
    "accumulate_",
    "adamw_step_",
    "combine_",
    "lamb_step_",
    "norm_dot",
    "perturb_",
    "restore_",
    "sgd_step_",
    "swap_",
]
