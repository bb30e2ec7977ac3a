"""Which methods run on which workload. From a base one factor is varied at a time: the full grid would take days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.errors import CommandError
from benchmarks.steps.workloads import Workload

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
HOST = (
    "weight 0",
    "split m=k/4",
    "split m=k/4, variance",
    "prefix",
    "leave_one_out",
    "leave_one_out @reference",
)
SOURCES = ("weight 0", "split m=k/4, variance", "leave_one_out, variance", "Reptile")
SCALING = ("plain", "split m=k/4", "prefix", "double backward", "difference, torch")


@dataclass(frozen=True)
class Measurement:
    """What becomes one row: a method on a workload.

    Attributes:
        workload: what is trained.
        method: the name of a contender.
        seconds: for which it takes turns with plain.
        limit: seconds after which its process is ended.
    """

    workload: Workload
    method: str
    seconds: float
    limit: float

    @property
    def key(self) -> tuple[str, str]:
        """What tells rows of a suite apart."""
        return self.workload.name, self.method


@dataclass(frozen=True)
class Suite:
    """Measurements in the order of their importance.

    Attributes:
        name: of the files.
        headline: the workload that table and bar charts are about.
        minutes: after which nothing new is begun.
        device: "cpu" or "cuda".
        measurements: what is to be measured.
    """

    name: str
    headline: Workload
    minutes: float
    device: str
    measurements: list[Measurement] = field(default_factory=list)

    def add(self, workload: Workload, methods: Sequence[str], seconds: float, limit: float = 120.0) -> None:
        """Adds measurements, leaving out those that are there."""
        known = {m.key for m in self.measurements}
        self.measurements.extend(
            Measurement(workload, method, seconds, limit) for method in methods if (workload.name, method) not in known
        )

    def matching(self, only: str | None) -> list[Measurement]:
        """Those with this text in their workload or method; all for None.

        Raises:
            CommandError: there are none.
        """
        found = [m for m in self.measurements if only is None or any(only in part for part in m.key)]
        if not found:
            workloads, methods = (
                list(dict.fromkeys(parts)) for parts in zip(*(m.key for m in self.measurements), strict=True)
            )
            raise CommandError(
                f"--only: expected a part of a workload or method of the suite {self.name}; got {only!r}; there are\n"
                f"    workloads: {'; '.join(workloads)}\n    methods: {'; '.join(methods)}"
            )
        return found


def on_backends(methods: Sequence[str], backends: Sequence[str]) -> list[str]:
    """The names of these methods on each backend."""
    return [f"{method} @{backend}" for backend in backends for method in methods]


def quick() -> Suite:
    """BERT-tiny and small MLPs: under 2 minutes on two cores."""
    base = Workload("bert-tiny", 8, 8, 64)
    suite = Suite("quick", base, 1.6, "cpu")
    suite.add(base, LEAN, seconds=1.5, limit=40)
    for size in (1e3, 1e5, 1e7):
        suite.add(Workload("mlp", 8, 4, int(size)), ("plain", "split m=k/4", "double backward"), seconds=0.5, limit=20)
    suite.add(Workload("mlp", 8, 4, 1000), ("full Hessian",), seconds=0.5, limit=20)
    rest = ("difference, torch", "SAM, davda54's two steps", "Reptile", "split m=k/2", "split m=k/4 @reference")
    suite.add(base, rest, seconds=1.5, limit=40)
    return suite


def minilm() -> Suite:
    """MiniLM, k = 8 micro-batches of 16 x 64 tokens: the README's table; about 6 minutes a run on two cores."""
    base = Workload("minilm", 8, 16, 64)
    suite = Suite("minilm", base, 5.5, "cpu")
    suite.add(base, ("split m=k/4", "plain", "pytorch_optimizer SAM", "prefix"), seconds=25)
    suite.add(base, ("naive double backward", "double backward", "leave_one_out"), seconds=25, limit=180)
    return suite


def cpu() -> Suite:
    """Everything a CPU can do within 40 minutes."""
    base, tiny = Workload("minilm", 8, 16, 64), Workload("bert-tiny", 8, 16, 64)
    suite = Suite("cpu", base, 38, "cpu")
    suite.add(base, (*LEAN, "naive double backward"), seconds=28, limit=240)
    _scaling(suite, (1e3, 1e4, 1e5, 1e6, 1e7, 1e8))
    suite.add(base, FURTHER, seconds=16, limit=240)
    suite.add(tiny, (*ALL, "difference, compile"), seconds=3)
    suite.add(tiny, on_backends(OURS, ("reference", "native")), seconds=3)
    suite.add(Workload("decoder-100m", 4, 1, 64), CORE, seconds=15, limit=150)
    suite.add(Workload("resnet", 8, 16, 32), (*LEAN, "difference, torch", "gradalign SAM"), seconds=5)
    for workload in _varied(tiny, ks=(2, 4, 16), batches=(4, 64), sizes=(128,)):
        suite.add(workload, CORE, seconds=2)
    small = Workload("minilm", 8, 4, 64)
    for workload in (small, *_varied(small, ks=(2, 4, 16), batches=(), sizes=(128,))):
        suite.add(workload, SHORT, seconds=6)
    return suite


def gpu() -> Suite:
    """What one GPU can do; every backend, fp32 and bf16."""
    base = Workload("bert-large", 8, 16, 128)
    suite = Suite("gpu", base, 25, "cuda")
    suite.add(base, LEAN, seconds=15)
    for dtype in ("bf16", "fp32"):
        suite.add(Workload("bert-base", 8, 16, 128, dtype), LEAN, seconds=6)
    suite.add(Workload("bert-large", 8, 16, 128, "bf16"), LEAN, seconds=8)
    suite.add(Workload("decoder-1b", 8, 4, 128, "bf16"), SHORT, seconds=10)
    suite.add(base, ALL, seconds=8)
    suite.add(base, on_backends(("split m=k/4",), ("reference", "native", "triton")), seconds=8)
    suite.add(Workload("decoder-100m", 8, 16, 128), LEAN, seconds=5)
    suite.add(Workload("resnet", 8, 64, 32), LEAN, seconds=3)
    _scaling(suite, (1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9))
    suite.add(Workload("decoder-1b", 8, 4, 128), SHORT, seconds=10)
    return suite


def host() -> Suite:
    """Steps whose passes are short, so that what the host does beside them shows: about 2 minutes."""
    base = Workload("mlp", 8, 4, 100_000)
    suite = Suite("host", base, 1.6, "cpu")
    suite.add(base, ("plain", *HOST), seconds=6, limit=40)
    suite.add(Workload("bert-tiny", 8, 8, 64), ("plain", "split m=k/4"), seconds=8, limit=40)
    suite.add(Workload("linear", 2, 32, 384), ("plain", *SOURCES), seconds=3, limit=40)  # two sources, frozen features
    return suite


SUITES = {"quick": quick, "host": host, "minilm": minilm, "cpu": cpu, "gpu": gpu}


def _scaling(suite: Suite, sizes: Sequence[float]) -> None:
    """Curves in n, each method up to where its memory ends."""
    for size in sizes:
        workload = Workload("mlp", 8, 4, int(size))
        suite.add(workload, SCALING, seconds=1 if size < 1e7 else 4, limit=90)
        if size <= 1e5:
            suite.add(workload, ("full Hessian",), seconds=1, limit=45)


def _varied(base: Workload, ks: Sequence[int], batches: Sequence[int], sizes: Sequence[int]) -> list[Workload]:
    """The base with one factor changed."""
    return [
        *(Workload(base.model, k, base.batch, base.size, base.dtype) for k in ks),
        *(Workload(base.model, base.k, batch, base.size, base.dtype) for batch in batches),
        *(Workload(base.model, base.k, base.batch, size, base.dtype) for size in sizes),
    ]
