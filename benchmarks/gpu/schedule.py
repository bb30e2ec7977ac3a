"""Which stages there are, how the time is shared among them, and how each of them ended."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SANITIZERS = ("memcheck", "racecheck", "initcheck")
# Seconds of the 520 that are there beside the report, kept for a stage until its turn. What one leaves is for those after it.
SHARES = {"build": 95, "tests": 110, "memcheck": 50, "benchmark": 105, "suite": 75, "racecheck": 45, "initcheck": 40}
# Where there is no GPU.
WITHOUT_GPU = {"build": 120, "collect": 60}
# Seconds below which a stage is not begun: a sanitizer takes as long to start torch, the suite for its last row.
LEAST = {"suite": 50.0, **dict.fromkeys(SANITIZERS, 35.0)}
LEAST_OF_ANY = 5.0
NO_TIME = "no time left"

Work = Callable[[float], tuple[bool, str]]


@dataclass
class Stage:
    """How one stage ended."""

    name: str
    status: str  # "passed", "failed", "skipped"
    seconds: float = 0.0
    summary: str = ""
    log: str = ""


@dataclass
class Run:
    """The whole run so far.

    Attributes:
        out: where logs go.
        seconds: for all stages together.
        skip: stages that are left out.
        shares: the stages in their order, with their parts of the time.
    """

    out: Path
    seconds: float
    skip: tuple[str, ...] = ()
    shares: dict[str, int] = field(default_factory=lambda: SHARES)
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.seconds

    def left_for(self, name: str) -> float:
        """Seconds that a stage may take: all that are left, less the shares of the stages after it."""
        names = list(self.shares)
        later = sum(self.shares[other] for other in names[names.index(name) + 1 :] if other not in self.skip)
        return self.deadline - time.monotonic() - later * self.seconds / sum(self.shares.values())

    def stage(self, name: str, work: Work) -> Stage:
        """Runs one stage within its time; one that raises has failed, and says why."""
        left = self.left_for(name)
        if name in self.skip or left < LEAST.get(name, LEAST_OF_ANY):
            done = Stage(name, "skipped", summary="asked for" if name in self.skip else NO_TIME)
        else:
            print(f"{name} ...", flush=True)
            start = time.monotonic()
            try:
                passed, text = work(left)
            except Exception:
                passed, text = False, traceback.format_exc()
            summary = next((line for line in reversed(text.splitlines()) if line.strip()), "")
            log = self.out / f"{name}.log"
            log.write_text(text, encoding="utf-8", errors="replace")
            done = Stage(name, "passed" if passed else "failed", time.monotonic() - start, summary.strip(), log.name)
        self.stages.append(done)
        print(f"{name}: {done.status} in {done.seconds:.0f} s: {done.summary}", flush=True)
        return done
