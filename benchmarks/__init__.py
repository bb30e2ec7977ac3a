"""What a step of gradalign costs beside its alternatives, and how fast its kernels are.

    steps/               whole optimizer steps of gradalign and its alternatives on one workload: `python -m benchmarks`
    kernels/             single ops and optimizer steps beside torch's, in bytes per second
    quality/             where agreement helps, on tasks with tuned settings and paired seeds: `python -m benchmarks.quality`
    gpu/                 build, test, measure and sanitize on a machine with a GPU: `make gpu`
    guards/              counts that must not grow: `make bench-guards`
    results/             committed figures
    pages                writes the tables of README.md and docs/ from results/
    reference_methods    the alternatives written out in plain torch
    timing, provenance, record, json_lines, tables, errors    shared: clocks, machine and versions, JSON, Markdown, errors

Benchmarks are run from a checkout and are not installed. gradalign is: by `make env`, or by links for `make gpu`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# `python -m` puts the working directory on the path. In the root, transformers would find the folder `kernels` there and
# take it for the package of that name. This package is imported before anything else, and finds its modules without the root.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != ROOT]
