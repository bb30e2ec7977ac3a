"""Triton kernels for CUDA and ROCm, installed as `gradalign.kernels`.

An op is a *block*, a function of 1024 elements that knows nothing of addresses, tails or alignment. Everything else is shared:

    tensor_lists  addresses, dtypes and layouts of a list of tensors, read at every call
    plan          how the tensors are cut into chunks
    tables        addresses and chunks on the device
    sweep         the one kernel: runs a block over a chunk, 16 bytes per access where the addresses allow it
    launch        the one launcher, which also bumps the version counters
    sums          the second stage of the reductions
    run           an op: tables, launches, sums, and copies of tensors whose layout needs one
    rounding      from float32 to the storage dtype, to nearest or stochastically
    advance       the per-tensor scalars of the optimizer steps

The other files are the ops, each with the name of the op it defines. `gradalign.backends.triton` imports one when it is first
called, and with it Triton.
"""
