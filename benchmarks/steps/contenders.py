"""The table of contenders: every method that can do a step, its name, and what a reader has to know about it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradalign
from benchmarks import reference_methods
from benchmarks.errors import CommandError
from benchmarks.steps import peers
from benchmarks.steps.task import GradientFiller, Plain, Stepper, Task
from gradalign import baselines
from gradalign.backends import dispatch

WEIGHT = 0.001
INNER_LR = 1e-4
ALL_PAIRS = "compares every micro-batch with every other; a probe of split sees the anchors only"
COMPILER = ("torch._inductor.compile_fx", "torch._dynamo")
PEER = ("pytorch_optimizer",)


@dataclass(frozen=True)
class Contender:
    """A method as it is measured.

    Attributes:
        name: in rows, tables and figures.
        family: "plain", "gradalign", "same term" (other ways to compute it) or "other" (methods with another aim).
        make: makes the method for a task.
        eager: needs attention written out.
        period: steps after which its cost repeats.
        modules: imported before memory is measured.
        note: below the table.
    """

    name: str
    family: str
    make: Callable[[Task], Stepper]
    eager: bool = False
    period: int = 1
    modules: tuple[str, ...] = ()
    note: str = ""


def prepare(contender: Contender) -> None:
    """Imports what the contender needs; what is missing is reported when it is made."""
    for module in contender.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def contender(name: str) -> Contender:
    """The contender of that name.

    Raises:
        CommandError: there is none.
    """
    if name not in CONTENDERS:
        raise CommandError(f"method: expected one of {', '.join(CONTENDERS)}; got {name!r}")
    return CONTENDERS[name]


def _aligned(**options: Any) -> Callable[[Task], Stepper]:
    return lambda task: GradientFiller(task, gradalign.GradAlign(task.model, **({"weight": WEIGHT} | options)))


def _baseline(kind: Callable[..., Any], strength: float) -> Callable[[Task], Stepper]:
    """One of gradalign.baselines with its radius or inner learning rate."""
    return lambda task: GradientFiller(task, kind(task.model, strength))


def _reference(kind: Callable[..., Stepper], *args: Any) -> Callable[[Task], Stepper]:
    return lambda task: kind(task.model, task.loss_fn, task.adamw(), *args)


ESTIMATORS: dict[str, dict[str, Any]] = {
    "weight 0": {"weight": 0.0},
    "split m=k/8": {"probe_fraction": 1 / 8},
    "split m=k/4": {"probe_fraction": 1 / 4},
    "split m=k/2": {"probe_fraction": 1 / 2},
    "split m=k/4, variance": {"probe_fraction": 1 / 4, "objective": "variance"},
    "prefix": {"estimator": "prefix"},
    "leave_one_out": {"estimator": "leave_one_out"},
    "leave_one_out, variance": {"estimator": "leave_one_out", "objective": "variance"},
    "momentum": {"estimator": "momentum"},
}


def _gradalign() -> list[Contender]:
    """Every estimator on the backend that gradalign chooses, and on each by name."""
    found = [Contender(name, "gradalign", _aligned(**options)) for name, options in ESTIMATORS.items()]
    for backend in dispatch.ORDER:
        found += [
            Contender(f"{name} @{backend}", "gradalign", _aligned(backend=backend, **options))
            for name, options in ESTIMATORS.items()
        ]
    return found


def _same_term() -> list[Contender]:
    """Other ways to compute the term of `split`, or that of all pairs."""
    difference, naive, hessian = (
        reference_methods.FiniteDifference,
        reference_methods.NaiveDoubleBackward,
        reference_methods.FullHessian,
    )
    family = "same term"
    return [
        Contender("difference, torch", family, _reference(difference, WEIGHT, "loop")),
        Contender("difference, foreach", family, _reference(difference, WEIGHT, "foreach")),
        Contender("difference, compile", family, _reference(difference, WEIGHT, "compile"), modules=COMPILER),
        Contender("double backward", family, _aligned(estimator="exact"), eager=True, note=ALL_PAIRS),
        Contender(
            "naive double backward",
            family,
            _reference(naive, WEIGHT),
            eager=True,
            note="A of all pairs as one expression for autograd; normalize none",
        ),
        Contender("full Hessian", family, _reference(hessian, WEIGHT), eager=True, note=f"{ALL_PAIRS}; O(n^2)"),
    ]


def _other_aims() -> list[Contender]:
    """Methods that train towards something else, for what their steps cost."""
    makers = peers.MAKERS
    return [
        Contender("pytorch_optimizer SAM", "other", makers["pytorch_optimizer SAM"], modules=PEER),
        Contender("SAM, davda54's two steps", "other", _reference(reference_methods.TwoStepSAM, peers.RHO)),
        Contender("gradalign SAM", "other", _baseline(baselines.SAM, peers.RHO)),
        Contender("pytorch_optimizer GSAM", "other", makers["pytorch_optimizer GSAM"], modules=PEER),
        Contender(
            "pytorch_optimizer LookSAM",
            "other",
            makers["pytorch_optimizer LookSAM"],
            period=peers.LOOKSAM_PERIOD,
            modules=PEER,
            note="the mean of 5 steps, one of them a full one; its first closure is left out where nothing is displaced",
        ),
        Contender("Reptile", "other", _baseline(baselines.Reptile, INNER_LR)),
        Contender("FOMAML", "other", _baseline(baselines.FOMAML, INNER_LR)),
    ]


CONTENDERS: dict[str, Contender] = {
    found.name: found
    for found in (
        Contender("plain", "plain", Plain),
        Contender("plain, eager attention", "plain", Plain, eager=True, note="what double backward has to run on"),
        *_gradalign(),
        *_same_term(),
        *_other_aims(),
    )
}
