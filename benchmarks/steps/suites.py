"""Which methods do which work. From a base one factor is varied at a time: the full grid would take days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.steps.works import Work
from gradalign.cli.errors import CommandError

LEAN = ("plain", "split m=k/4", "prefix", "leave_one_out", "double backward", "pytorch_optimizer SAM")
CORE = ("plain", "split m=k/4", "prefix", "double backward", "pytorch_optimizer SAM")
SHORT = ("plain", "split m=k/4", "prefix", "pytorch_optimizer SAM")
OURS = ("split m=k/8", "split m=k/4", "split m=k/2", "prefix", "leave_one_out")
PEERS = (
    "pytorch_optimizer SAM",
    "SAM, davda54's two steps",
    "gradalign SAM",
    "pytorch_optimizer GSAM",
    "pytorch_optimizer LookSAM",
    "Reptile",
    "FOMAML",
)
DIFFERENCES = ("difference, torch", "difference, foreach", "difference, compile")
ALL = (
    "plain",
    "split m=k/4",
    "pytorch_optimizer SAM",
    "prefix",
    "double backward",
    "naive double backward",
    "leave_one_out",
    "split m=k/8",
    "split m=k/2",
    "split m=k/4, variance",
    "momentum",
    "difference, torch",
    "difference, foreach",
    *PEERS[1:],
    "plain, eager attention",
)
FURTHER = (
    "split m=k/8",
    "split m=k/2",
    "split m=k/4, variance",
    "difference, torch",
    "SAM, davda54's two steps",
    "Reptile",
    "pytorch_optimizer GSAM",
    "pytorch_optimizer LookSAM",
)
SCALING = ("plain", "split m=k/4", "prefix", "double backward", "difference, torch")


@dataclass(frozen=True)
class Measurement:
    """One row to be: a method on a work, for so many seconds in turns with plain, within a limit of seconds in all."""

    work: Work
    method: str
    seconds: float
    limit: float

    @property
    def key(self) -> tuple[str, str]:
        """What tells rows of a suite apart."""
        return self.work.name, self.method


@dataclass(frozen=True)
class Suite:
    """Measurements in the order of their importance.

    Attributes:
        name: of the files.
        headline: the work that table and bar charts are about.
        minutes: after which nothing new is begun.
        device: "cpu" or "cuda".
        measurements: what is to be measured.
    """

    name: str
    headline: Work
    minutes: float
    device: str
    measurements: list[Measurement] = field(default_factory=list)

    def add(self, work: Work, methods: Sequence[str], seconds: float, limit: float = 120.0) -> None:
        """More measurements, those that are there already excepted."""
        known = {m.key for m in self.measurements}
        self.measurements.extend(
            Measurement(work, method, seconds, limit) for method in methods if (work.name, method) not in known
        )

    def matching(self, only: str | None) -> list[Measurement]:
        """Those with this text in their work or method; all for None.

        Raises:
            CommandError: there are none.
        """
        found = [m for m in self.measurements if only is None or any(only in part for part in m.key)]
        if not found:
            works, methods = (
                list(dict.fromkeys(parts)) for parts in zip(*(m.key for m in self.measurements), strict=True)
            )
            raise CommandError(
                f"--only: expected a part of a work or method of the suite {self.name}; got {only!r}; there are\n"
                f"    works: {'; '.join(works)}\n    methods: {'; '.join(methods)}"
            )
        return found


def on_backends(methods: Sequence[str], backends: Sequence[str]) -> list[str]:
    """The names of the methods on each backend."""
    return [f"{method} @{backend}" for backend in backends for method in methods]


def quick() -> Suite:
    """BERT-tiny and small MLPs: under 2 minutes on two cores."""
    base = Work("bert-tiny", 8, 8, 64)
    suite = Suite("quick", base, 1.6, "cpu")
    suite.add(base, LEAN, seconds=1.5, limit=40)
    for size in (1e3, 1e5, 1e7):
        suite.add(Work("mlp", 8, 4, int(size)), ("plain", "split m=k/4", "double backward"), seconds=0.5, limit=20)
    suite.add(Work("mlp", 8, 4, 1000), ("full Hessian",), seconds=0.5, limit=20)
    rest = ("difference, torch", "SAM, davda54's two steps", "Reptile", "split m=k/2", "split m=k/4 @reference")
    suite.add(base, rest, seconds=1.5, limit=40)
    return suite


def minilm() -> Suite:
    """The issue's targets: MiniLM, k = 8 micro-batches of 16 x 64 tokens, about 6 minutes a go on two cores."""
    base = Work("minilm", 8, 16, 64)
    suite = Suite("minilm", base, 5.5, "cpu")
    suite.add(base, ("split m=k/4", "plain", "pytorch_optimizer SAM", "prefix"), seconds=25)
    suite.add(base, ("naive double backward", "double backward", "leave_one_out"), seconds=25, limit=180)
    return suite


def cpu() -> Suite:
    """Everything a CPU can do within 40 minutes."""
    base, tiny = Work("minilm", 8, 16, 64), Work("bert-tiny", 8, 16, 64)
    suite = Suite("cpu", base, 38, "cpu")
    suite.add(base, (*LEAN, "naive double backward"), seconds=28, limit=240)
    _scaling(suite, (1e3, 1e4, 1e5, 1e6, 1e7, 1e8))
    suite.add(base, FURTHER, seconds=16, limit=240)
    suite.add(tiny, (*ALL, "difference, compile"), seconds=3)
    suite.add(tiny, on_backends(OURS, ("reference", "native")), seconds=3)
    suite.add(Work("decoder-100m", 4, 1, 64), CORE, seconds=15, limit=150)
    suite.add(Work("resnet", 8, 16, 32), (*LEAN, "difference, torch", "gradalign SAM"), seconds=5)
    for work in _varied(tiny, ks=(2, 4, 16), batches=(4, 64), sizes=(128,)):
        suite.add(work, CORE, seconds=2)
    small = Work("minilm", 8, 4, 64)
    for work in (small, *_varied(small, ks=(2, 4, 16), batches=(), sizes=(128,))):
        suite.add(work, SHORT, seconds=6)
    return suite


def gpu() -> Suite:
    """What one GPU can do; every backend, fp32 and bf16."""
    base = Work("bert-large", 8, 16, 128)
    suite = Suite("gpu", base, 25, "cuda")
    suite.add(base, LEAN, seconds=15)
    for dtype in ("bf16", "fp32"):
        suite.add(Work("bert-base", 8, 16, 128, dtype), LEAN, seconds=6)
    suite.add(Work("bert-large", 8, 16, 128, "bf16"), LEAN, seconds=8)
    suite.add(Work("decoder-1b", 8, 4, 128, "bf16"), SHORT, seconds=10)
    suite.add(base, ALL, seconds=8)
    suite.add(base, on_backends(("split m=k/4",), ("reference", "native", "triton")), seconds=8)
    suite.add(Work("decoder-100m", 8, 16, 128), LEAN, seconds=5)
    suite.add(Work("resnet", 8, 64, 32), LEAN, seconds=3)
    _scaling(suite, (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9))
    suite.add(Work("decoder-1b", 8, 4, 128), SHORT, seconds=10)
    return suite


SUITES = {"quick": quick, "minilm": minilm, "cpu": cpu, "gpu": gpu}


def _scaling(suite: Suite, sizes: Sequence[float]) -> None:
    """Curves in n, each method up to where its memory ends."""
    for size in sizes:
        work = Work("mlp", 8, 4, int(size))
        suite.add(work, SCALING, seconds=1 if size < 1e7 else 4, limit=90)
        if size <= 1e5:
            suite.add(work, ("full Hessian",), seconds=1, limit=45)


def _varied(base: Work, ks: Sequence[int], batches: Sequence[int], sizes: Sequence[int]) -> list[Work]:
    """The base with one factor changed."""
    return [
        *(Work(base.model, k, base.batch, base.size, base.dtype) for k in ks),
        *(Work(base.model, base.k, batch, base.size, base.dtype) for batch in batches),
        *(Work(base.model, base.k, base.batch, size, base.dtype) for size in sizes),
    ]
