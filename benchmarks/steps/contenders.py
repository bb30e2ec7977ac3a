"""The table of methods: who can do a step, under what name, and what to know about it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import gradalign
from benchmarks.steps import peers
from benchmarks.steps.task import Filling, Plain, Stepper, Task
from gradalign import baselines
from gradalign.backends import dispatch
from gradalign.cli.errors import CommandError

WEIGHT = 0.001
ALL_PAIRS = "compares every micro-batch with every other; a probe of split sees the anchors only"
COMPILER = ("torch._inductor.compile_fx", "torch._dynamo")
PEER = ("pytorch_optimizer",)
REFERENCES = Path(gradalign.__file__).parents[1] / "benchmarks" / "reference_methods.py"


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: in rows, tables and figures.
        family: "plain", "gradalign", "same term" (other ways to it) or "other" (methods with another aim).
        make: the method for a task.
        eager: needs attention written out.
        period: steps after which its cost repeats.
        modules: what it imports, so that this can be done before memory is measured.
        note: what a reader of the table has to know.
    """

    name: str
    family: str
    make: Callable[[Task], Stepper]
    eager: bool = False
    period: int = 1
    modules: tuple[str, ...] = ()
    note: str = ""


def _aligned(**options: Any) -> Callable[[Task], Stepper]:
    return lambda task: Filling(task, gradalign.GradAlign(task.model, WEIGHT, **options))


ESTIMATORS: dict[str, dict[str, Any]] = {
    "split m=k/8": {"probe_fraction": 1 / 8},
    "split m=k/4": {"probe_fraction": 1 / 4},
    "split m=k/2": {"probe_fraction": 1 / 2},
    "split m=k/4, variance": {"probe_fraction": 1 / 4, "objective": "variance"},
    "prefix": {"estimator": "prefix"},
    "leave_one_out": {"estimator": "leave_one_out"},
    "momentum": {"estimator": "momentum"},
}


def _gradalign() -> list[Entry]:
    entries = [Entry(name, "gradalign", _aligned(**options)) for name, options in ESTIMATORS.items()]
    for backend in dispatch.ORDER:
        entries += [
            Entry(f"{name} @{backend}", "gradalign", _aligned(backend=backend, **options))
            for name, options in ESTIMATORS.items()
        ]
    return entries


def reference_methods() -> ModuleType:
    """What is written out in the tests, where the source tree is.

    Raises:
        CommandError: an installed package without the tests beside it.
    """
    name = "gradalign_reference_methods"
    if name not in sys.modules:
        if not REFERENCES.is_file():
            raise CommandError(f"expected the source tree, whose tests have this method; got no {REFERENCES.name}")
        spec = importlib.util.spec_from_file_location(name, REFERENCES)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def prepare(entry: Entry) -> None:
    """Imports what the method needs; what is missing shows when it is made."""
    for module in entry.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)


def _reference(kind: str, *args: Any) -> Callable[[Task], Stepper]:
    return lambda task: getattr(reference_methods(), kind)(task.model, task.loss_fn, task.adamw(), *args)


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("plain", "plain", Plain),
        Entry("plain, eager attention", "plain", Plain, eager=True, note="what double backward has to run on"),
        *_gradalign(),
        Entry("difference, torch", "same term", _reference("FiniteDifference", WEIGHT, "loop")),
        Entry("difference, foreach", "same term", _reference("FiniteDifference", WEIGHT, "foreach")),
        Entry("difference, compile", "same term", _reference("FiniteDifference", WEIGHT, "compile"), modules=COMPILER),
        Entry(
            "double backward",
            "same term",
            lambda task: Filling(task, baselines.DoubleBackward(task.model, WEIGHT)),
            eager=True,
            note=ALL_PAIRS,
        ),
        Entry(
            "naive double backward",
            "same term",
            _reference("NaiveDoubleBackward", WEIGHT),
            eager=True,
            note="A of all pairs as one expression for autograd; normalize none",
        ),
        Entry("full Hessian", "same term", _reference("FullHessian", WEIGHT), eager=True, note=f"{ALL_PAIRS}; O(n^2)"),
        Entry("pytorch_optimizer SAM", "other", peers.MAKERS["pytorch_optimizer SAM"], modules=PEER),
        Entry("SAM, davda54's two steps", "other", _reference("TwoStepSAM", peers.RHO)),
        Entry("gradalign SAM", "other", lambda task: Filling(task, baselines.SAM(task.model, peers.RHO))),
        Entry("pytorch_optimizer GSAM", "other", peers.MAKERS["pytorch_optimizer GSAM"], modules=PEER),
        Entry(
            "pytorch_optimizer LookSAM",
            "other",
            peers.MAKERS["pytorch_optimizer LookSAM"],
            period=peers.LOOKSAM_PERIOD,
            modules=PEER,
            note="the mean of 5 steps, one of them a full one; its first closure is left out where nothing is displaced",
        ),
        Entry("Reptile", "other", lambda task: Filling(task, baselines.Reptile(task.model, 1e-4))),
        Entry("FOMAML", "other", lambda task: Filling(task, baselines.FOMAML(task.model, 1e-4))),
    )
}


def entry(name: str) -> Entry:
    """The method of that name.

    Raises:
        CommandError: there is none.
    """
    if name not in ENTRIES:
        raise CommandError(f"method: expected one of {', '.join(ENTRIES)}; got {name!r}")
    return ENTRIES[name]
