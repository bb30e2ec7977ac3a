"""Whole optimizer steps of gradalign and its alternatives on the same workload: time, peak memory, passes.

    workloads, models, text      what is trained: a model, k micro-batches, their loss
    task, contenders, peers      who trains it: one small class each, all with the same `step(micro_batches)`
    against_plain, memory        seconds against plain AdamW in turns; peak memory
    kernel_traffic, device       calls, bytes and seconds of gradalign's kernels; what only a GPU has
    suites                       which contenders run which workload: `quick`, `host`, `minilm`, `cpu`, `gpu`
    child, runner                one process a measurement, one row of JSON written as soon as it is there
    table, shortfalls, figures   one table, where gradalign is slower or larger and why, four figures
    compare                      two results against each other, with a band for noise
    commands                     what `python -m benchmarks` does with its options

A measurement is a process of its own: a contender that fails, hangs or runs out of memory ends as a row with the reason, and
takes nothing with it. In that process it takes turns with plain AdamW, so that whatever else the machine does hits both.
"""
