"""Choosing the radius and the weight, from measurements on your own model and micro-batches.

`tune` measures the error of finite differences over a sweep of radii. It recommends a radius, reports how much of the
displacement the parameters' dtype can represent, and gives a weight to start from.

Modules: `tuner` (the whole measurement), `sweep` (its radii), `differences` (gradients around theta), `reference` (the
Hessian-vector product they are compared with), `richardson` (its extrapolation), `weights`, `curve` (the errors and the
recommended radius), `result`, `table` and `plot`.
"""

from gradalign.tuning.curve import Point
from gradalign.tuning.result import StartingWeight, TuningResult
from gradalign.tuning.sweep import RADII
from gradalign.tuning.tuner import tune
from gradalign.tuning.weights import STARTING_WEIGHTS

__all__ = ["RADII", "STARTING_WEIGHTS", "Point", "StartingWeight", "TuningResult", "tune"]
