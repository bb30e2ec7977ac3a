"""Made-up records of the demo's two sites."""

from gradalign.cli.demo.record import run_record
from gradalign.cli.demo.sites.methods import LONGER, METHODS
from gradalign.cli.demo.sites.record import summary
from gradalign.cli.demo.sites.settings import Settings

SETTINGS = vars(Settings(texts=40, held_out=30, steps=2, seeds=3, first_seed=0))


def arm(test, steps=2, cost_factor=1.0):
    return {
        "steps": steps,
        "seconds": [0.01 * cost_factor] * steps,
        "accuracies": [(1, 0.5), (steps, test)],
        "test": test,
        "own": 0.9,
        "by_pointing_right": [0.1, test, 0.95],
        "cost_factor": cost_factor,
    }


def seed(number, gain):
    """Every arm is right in 60%, the longer plain run in 61%, Reptile in 64%, cosine in 60% and `gain`."""
    arms = {method.name: arm(0.6, cost_factor=4.0 if method.aligned else 1.0) for method in METHODS}
    arms |= {LONGER: arm(0.61, steps=8), "Reptile": arm(0.64), "cosine": arm(0.6 + gain, cost_factor=4.0)}
    return {"seed": number, "data": {"train": 80, "own": 15, "test": 45}, "arms": arms}


def record(*gains):
    """A run with one seed per gain of cosine."""
    seeds = [seed(i, gain) for i, gain in enumerate(gains)]
    return run_record(SETTINGS, {"seeds": seeds, "summary": summary(seeds)}, 12.34)
