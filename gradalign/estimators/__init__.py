"""Estimators: which micro-batches are compared with which, and what that costs.

Each is a frozen configuration with its own options. `GradAlign(estimator="split")` takes one by name with its default options,
`GradAlign(estimator=Split(probe_fraction=0.5, probes="rotate"))` as it is.

    >>> from gradalign.estimators import LeaveOneOut, Split
    >>> Split(probes="rotate")
    Split(probe_fraction=0.25, probes='rotate')
    >>> LeaveOneOut()
    LeaveOneOut(gradients='device')
"""

from __future__ import annotations

from typing import Literal

from gradalign.engine.estimator import Estimator
from gradalign.engine.validation import one_of
from gradalign.estimators.exact import Exact
from gradalign.estimators.leave_one_out import LeaveOneOut
from gradalign.estimators.momentum import Momentum
from gradalign.estimators.prefix import Prefix
from gradalign.estimators.split import Split
from gradalign.estimators.symmetric import Symmetric

EstimatorName = Literal["split", "prefix", "leave_one_out", "symmetric", "momentum", "exact"]

ESTIMATORS: dict[str, type[Estimator]] = {
    estimator.name: estimator for estimator in (Split, Prefix, LeaveOneOut, Symmetric, Momentum, Exact)
}


def named(estimator: EstimatorName | Estimator) -> Estimator:
    """The estimator of that name with its default options, or the given one.

    Args:
        estimator: a name of `ESTIMATORS`, or an instance.

    Returns:
        The instance.

    Raises:
        ValueError: an unknown name.
        TypeError: a class in place of its instance.
    """
    if isinstance(estimator, type) and issubclass(estimator, Estimator):
        name = estimator.__name__
        raise TypeError(f"estimator: expected a name or an instance; got the class {name}; write an instance, {name}()")
    return estimator if isinstance(estimator, Estimator) else ESTIMATORS[one_of("estimator", estimator, ESTIMATORS)]()


__all__ = [
    "ESTIMATORS",
    "Estimator",
    "EstimatorName",
    "Exact",
    "LeaveOneOut",
    "Momentum",
    "Prefix",
    "Split",
    "Symmetric",
    "named",
]
