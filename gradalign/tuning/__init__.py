"""Help with the radius and the weight: what finite differences are worth on one's own model and micro-batches.

`tune` measures their error over a sweep of radii and says which radius to take, what the parameters' dtype makes of the
displacement, and which weight to start from. The rooms: `tuner` (the whole measurement), `sweep` (its radii), `differences`
(gradients around theta), `reference` (the Hessian-vector product they are compared with), `weights`, `result`, `plot`.
"""

from gradalign.tuning.result import Point, StartingWeight, TuningResult
from gradalign.tuning.sweep import RADII
from gradalign.tuning.tuner import tune
from gradalign.tuning.weights import STARTING_WEIGHTS

__all__ = ["RADII", "STARTING_WEIGHTS", "Point", "StartingWeight", "TuningResult", "tune"]
