"""Every method, made for a model: what can be swapped for what."""

from __future__ import annotations

from gradalign import GradAlign
from gradalign.baselines import FOMAML, MAML, SAM, Reptile

# "exact", double backward over all pairs, is an estimator of GradAlign and the naive way to what the others estimate.
BASELINES = {
    "Reptile": lambda model, **options: Reptile(model, 0.1, **options),
    "FOMAML": lambda model, **options: FOMAML(model, 0.1, **options),
    "MAML": lambda model, **options: MAML(model, 0.1, **options),
    "SAM": lambda model, **options: SAM(model, 0.1, **options),
    "m-SAM": lambda model, **options: SAM(model, 0.1, per_micro_batch=True, **options),
    "exact": lambda model, **options: GradAlign(model, 0.1, estimator="exact", **options),
}
METHODS = BASELINES | {"GradAlign": lambda model, **options: GradAlign(model, 0.1, **options)}

AT_INNER_POINTS = ("Reptile", "FOMAML", "MAML")  # buffers see activations at inner points, not at theta
ONE_AT_A_TIME = tuple(name for name in BASELINES if name != "SAM")
