"""Single ops and whole optimizer steps beside torch's, in bytes per second, on any device.

ops, optimizers         what is called: `python -m benchmarks.kernels.ops`, `python -m benchmarks.kernels.optimizers`
host                    what a call costs the host: `python -m benchmarks.kernels.host`
workloads, step_names   lists of tensors; what whole steps are called
measurement, command    rows from calls; the options of both commands and the tables they print
tables                  the tables of docs/kernels.md and docs/optimizers.md
"""
