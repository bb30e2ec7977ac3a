"""The driver of the sanitizers launches every kernel of csrc/cuda."""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

import pytest
import torch
from support.cuda.cuda_backends import cuda_backend

from benchmarks import ROOT
from benchmarks.gpu import driver
from gradalign.backends.signatures import SCALAR_OPS, StepOptions, StepScalars, StepTensors

SOURCES = "\n".join(path.read_text() for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu*")))
SWEEPS = re.compile(r"run<(\w+),((?:\s*Storages<[\w, ]+>,?)+)\s*>\(")
KERNELS = re.compile(r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(")
STORAGES = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "double"}

# What an op launches: the sweeps by their ops in C++, and other kernels beside them.
SWEEPS_OF = {
    "norm_dot": ("NormDot",),
    "perturb_": ("Leave",),
    "perturb_ from backups": ("LeaveMaster",),
    "restore_": ("Restore",),
    "swap_": ("Swap",),
    "accumulate_": ("Accumulate",),
    "combine_": ("Combine",),
    "adamw_step_": ("AdamWStep",),
    "sgd_step_": ("SgdStep",),
    "lamb_step_": ("LambMoments", "LambUpdate"),
}
BESIDE = {
    **dict.fromkeys(("norm_dot", "perturb_", "accumulate_", "combine_"), ("sum_columns",)),
    "adamw_step_": ("begin_tensors",),
    "sgd_step_": ("begin_tensors",),
    "lamb_step_": ("begin_tensors", "set_rates"),
    "aim": ("aim_kernel",),
    "reached": ("reached_kernel",),
}


class Sweep(NamedTuple):
    """A kernel over lists: of these dtypes, or of any as wide as this."""

    op: str
    storages: tuple[str, ...]


def typed_sweeps() -> set[Sweep]:
    """Those with a kernel of their own, as csrc/cuda lists them."""
    return {
        Sweep(op, tuple(storage.strip() for storage in storages.split(",")))
        for op, known in SWEEPS.findall(SOURCES)
        for storages in re.findall(r"Storages<([^>]*)>", known)
    }


class Recorder:
    """A backend that notes which kernels its calls launch."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._typed = typed_sweeps()
        self.launched: set[Sweep | str] = set()

    def __getattr__(self, op: str) -> Any:
        run = getattr(self._backend, op)
        if op.startswith("_") or op.startswith("why"):
            return run

        def noted(*args: Any, **kwargs: Any) -> Any:
            if op not in SCALAR_OPS:
                self._note(*_lists(op, args, kwargs))
            self.launched.update(BESIDE.get(op, ()))
            return run(*args, **kwargs)

        return noted

    def _note(self, op: str, lists: list[Any]) -> None:
        for tensors in zip(*(ts or [None] * len(lists[0]) for ts in lists), strict=True):
            storages = tuple("None" if t is None else STORAGES[t.dtype] for t in tensors)
            there = [t for t in tensors if t is not None]
            flat = all(t.is_contiguous() for t in there)
            if not flat and all(map(_is_dense, there)):
                continue  # permuted: the kernel of flat lists if all are permuted alike, of which nothing is known here
            for sweep in SWEEPS_OF[op]:
                kernel = Sweep(sweep, storages)
                if not flat or kernel not in self._typed:
                    kernel = Sweep(sweep, ("double" if "double" in storages else "float",))
                self.launched.add(kernel)

    def step_(self, tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None:
        self._note(options.op, [tensors.params, tensors.grads, *tensors.states, tensors.masters])
        self.launched.update(BESIDE[options.op])
        self._backend.step_(tensors, scalars, options)


def _is_dense(t: torch.Tensor) -> bool:
    return sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1 == t.numel()


def _lists(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, list[Any]]:
    lists = [value for value in args if isinstance(value, list)]
    if op == "norm_dot":
        lists += [[]] * (2 - len(lists))
    if op == "perturb_":
        lists += [[]] * (4 - len(lists))
        op += " from backups" if kwargs.get("from_backups") else ""
    return op, lists


@pytest.fixture(scope="module")
def launched():
    """What the driver launches on an emulated GPU, on lists that are short."""
    recorder = Recorder(cuda_backend("emulated"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "native", recorder)
        patch.setattr(sys, "argv", ["driver.py", "cpu"])
        patch.setattr(driver, "SIZES", (3, 1030))
        assert driver.main() == 0
    return recorder.launched


def test_the_driver_launches_every_kernel_of_known_dtypes(launched):
    assert len(typed_sweeps()) == 69
    assert typed_sweeps() - launched == set()


def test_the_driver_launches_every_kernel_of_any_dtypes(launched):
    ops = {op for op, _ in SWEEPS.findall(SOURCES)}
    assert ops == {op for sweeps in SWEEPS_OF.values() for op in sweeps}
    assert {Sweep(op, (arithmetic,)) for op in ops for arithmetic in ("float", "double")} - launched == set()


def test_the_driver_launches_every_kernel_that_is_no_sweep(launched):
    others = set(KERNELS.findall(SOURCES)) - {"sweep", "sweep_any"}
    assert others == {kernel for kernels in BESIDE.values() for kernel in kernels}
    assert others - launched == set()


def test_the_driver_says_how_many_ops_ran(monkeypatch, capsys):
    monkeypatch.setattr(driver, "native", cuda_backend("emulated"))
    monkeypatch.setattr(sys, "argv", ["driver.py", "cpu"])
    monkeypatch.setattr(driver, "SIZES", (3,))
    assert driver.main() == 0
    assert capsys.readouterr().out == "221 ops ran\n"
