"""`gradalign doctor`: versions, devices, process groups, which backends work, why the others do not and what would help.

Needs only torch. What is missing or broken is reported, not raised.
"""

from __future__ import annotations

import argparse
import json
import platform

import torch

from gradalign._version import __version__
from gradalign.backends import dispatch
from gradalign.cli import build_info, machine
from gradalign.engine.distribution import process_groups

# Without ninja: the program that builds stands among the compilers, and the package may be of another version.
PACKAGES = ("torch", "triton", "pybind11", "transformers", "rich", "matplotlib")
FP32 = frozenset({torch.float32})
PLACES = {"cuda": "the GPU", "cpu": "the CPU"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `doctor` and its options."""
    parser = subparsers.add_parser(
        "doctor",
        help="versions, devices, backends, and what would help where one is missing",
        description="Prints the versions of gradalign and what it works with, the compilers and devices of this machine, "
        "for every backend whether it works, why not, and what would help, what the native extension was built with, and "
        "whether training works here. Builds the kernels that can be built, and compares those for a GPU with plain torch.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; 0, since a backend that is missing is a finding and no failure."""
    found = examine()
    print(json.dumps(found, indent=2) if args.json else as_text(found))
    return 0


def examine() -> dict[str, dict]:
    """Everything `doctor` reports, as plain data."""
    compilers, gpus = machine.compilers(), machine.gpus()
    gpu = any(found["capability"] is not None for found in gpus)
    backends = {name: diagnose(name, compilers, gpu) for name in dispatch.ORDER}
    return {
        "versions": {"gradalign": __version__, "platform": platform.platform(), **machine.versions(*PACKAGES)},
        "torch": {"cuda": torch.version.cuda, "hip": torch.version.hip, "cxx11_abi": torch.compiled_with_cxx11_abi()},
        "compilers": dict(compilers),
        "devices": {"cpu": machine.cpu(), "gpus": gpus},
        "processes": process_groups(),
        "backends": backends,
        "extension": build_info.examine(),
        "training": training(backends),
    }


def diagnose(name: str, compilers: dict[str, str | None], gpu: bool) -> dict[str, object]:
    """Whether one backend works here; a backend that has to be built is built.

    Returns:
        {"works", "devices", "why_not", "remedy"}, and "why_not_on_gpu" of one that works on the CPU alone.
    """
    devices: list[str] = []
    on_gpu: str | None = None
    helps = ""
    try:
        reason = dispatch.load(name).why_unavailable()
        if reason is None:
            devices = [] if dispatch.missing(name, "cpu", FP32) else ["cpu"]
            on_gpu = (dispatch.missing(name, "cuda", FP32) or dispatch.wrong(name, "cuda", FP32)) if gpu else None
            devices += ["cuda"] if gpu and on_gpu is None else []
            reason = None if devices else on_gpu or "supports none of the devices here"
        if reason is not None and "; " in reason:
            # "reason; remedy"; the backend's own remedy is better than one guessed from the machine
            reason, _, helps = reason.rpartition("; ")
    except Exception as error:  # a broken installation is what doctor is asked about
        reason, devices = f"{type(error).__name__}: {error}", []
    return {
        "works": reason is None,
        "devices": devices,
        "why_not": reason,
        "why_not_on_gpu": on_gpu if reason is None else None,
        "remedy": None if reason is None else helps or remedy(name, compilers, gpu),
    }


def training(backends: dict[str, dict]) -> dict[str, str]:
    """For every device on which training works, the backend that it uses unless told otherwise."""
    best = {kind: next((name for name in backends if kind in backends[name]["devices"]), None) for kind in PLACES}
    return {kind: name for kind, name in best.items() if name is not None}


def remedy(name: str, compilers: dict[str, str | None], gpu: bool) -> str:
    """What would make a backend work, from what was found on the machine."""
    if name == "triton":
        if not gpu:
            return "needs a CUDA or ROCm GPU that PyTorch can use; on the CPU, native and reference are the choices"
        return "pip install triton"
    if name == "native":
        if platform.system() == "Windows":
            return "Linux, macOS or WSL; elsewhere reference is the choice"
        missing = [] if any(compilers.get(cxx) for cxx in ("g++", "clang++")) else ["a C++ compiler (g++ or clang++)"]
        if not compilers.get("ninja"):
            missing.append("ninja (pip install ninja)")
        if gpu and not (compilers.get("nvcc") or compilers.get("hipcc")):
            missing.append("for GPU kernels: nvcc")
        if missing:
            return f"install {', '.join(missing)}"
        return "a compiler and ninja are here; from the source tree: pip install --no-build-isolation ."
    return "reinstall gradalign: reference needs torch alone"


def as_text(found: dict[str, dict]) -> str:
    """The findings in plain text, a section each."""
    cpu, gpus = found["devices"]["cpu"], found["devices"]["gpus"]
    flags = f" ({' '.join(cpu['flags'])})" if cpu["flags"] else ""
    lines = ["versions", *_pairs(found["versions"], "not installed")]
    lines += _pairs(
        {"torch's CUDA": found["torch"]["cuda"], "torch's ROCm": found["torch"]["hip"]}, "none, a build without it"
    )
    lines += ["", "compilers", *_pairs(found["compilers"], "not found")]
    lines += ["", "devices", f"  cpu           {cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads"]
    lines += [f"  instructions  {cpu['architecture']}, PyTorch uses {cpu['instruction_set']}{flags}"]
    lines += [f"  gpu {i}         {_gpu(gpu)}" for i, gpu in enumerate(gpus)] or ["  gpu           none"]
    lines += ["", "several processes", *_pairs(found["processes"], "none")]
    lines += ["", "backends, best first"]
    for name, state in found["backends"].items():
        works = f"works on {' and '.join(state['devices'])}"
        lines.append(f"  {name:<13} {works if state['works'] else 'does not work: ' + state['why_not']}")
        if state["why_not_on_gpu"]:
            lines.append(f"  {'':<13} not on cuda: {state['why_not_on_gpu']}")
        if state["remedy"]:
            lines.append(f"  {'':<13} what would help: {state['remedy']}")
    lines += ["", "native extension", *build_info.as_text(found["extension"])]
    return "\n".join([*lines, "", _training(found["training"])])


def _training(backend_on: dict[str, str]) -> str:
    if not backend_on:
        return "Training does not work here: no backend works."
    slow = {"reference": "reference backend (plain torch, slower)"}
    where = (f"on {PLACES[kind]} with the {slow.get(name, f'{name} backend')}" for kind, name in backend_on.items())
    return f"Training works here: {', '.join(where)}."


def _pairs(values: dict[str, str | None], absent: str) -> list[str]:
    return [f"  {name:<13} {value if value is not None else absent}" for name, value in values.items()]


def _gpu(gpu: dict[str, object]) -> str:
    if gpu["capability"] is None:
        return str(gpu["name"])
    return f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB"
