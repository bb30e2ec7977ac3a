"""`GradAlign` inside other libraries' training loops, one module each; none is imported with the package.

    transformers    `GradAlignMixin`, beside any Trainer
    accelerate      `accumulate`, in the place of `accelerator.accumulate`
    lightning       `GradAlignCallback`, for automatic optimization

The micro-batches of a step are those of the loop's own gradient accumulation.
"""
