"""Triton kernels for CUDA and ROCm, from `gradalign.kernels`.

One file per op. Triton is imported at the first use of an op.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from gradalign.backends import gpus, op_validation
from gradalign.backends.once import once
from gradalign.backends.reference_scalars import aim as aim
from gradalign.backends.reference_scalars import reached as reached
from gradalign.backends.signatures import VECTOR_OPS, StepOptions, StepScalars, StepTensors

NAME = "triton"

DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))
OLDEST = 8, 0  # compute capability, of Triton itself


def why_unavailable() -> str | None:
    """Why the kernels cannot be used, with the remedy; None where they work."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if _interpreted():
        return None
    if not torch.cuda.is_available():
        return "no GPU that this build of torch can use; run on one, with torch's CUDA or ROCm build"
    if not any(map(shutil.which, [os.environ.get("CC", "cc"), "gcc", "clang"])):
        return "Triton finds no C compiler to build its launcher with; install gcc or clang, or set CC"
    return None


def supports(device_type: str, dtypes: frozenset[torch.dtype]) -> bool:
    """Whether tensors of these dtypes on this kind of device can be worked on; on the CPU under TRITON_INTERPRET=1."""
    if _interpreted():
        return device_type == "cpu" and dtypes <= DTYPES
    return device_type == "cuda" and dtypes <= DTYPES and why_not_on(device_type) is None


@once
def why_not_on(device_type: str) -> str | None:
    """Why the kernels do not run on this kind of device, with the remedy; None where they do, or are not for it.

    Triton builds its launcher at the first launch, which may lack the headers of Python or the driver: one is tried here.
    """
    if device_type != "cuda" or _interpreted() or why_unavailable() is not None:
        return None
    if torch.version.hip is None:
        oldest = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
        if oldest < OLDEST:
            found = ".".join(map(str, oldest))
            return f"expected GPUs of compute capability 8.0 or later; got {found}; hide those before with CUDA_VISIBLE_DEVICES"
    device = gpus.in_use()
    try:
        with torch.cuda.device(device):
            __getattr__("norm_dot")([torch.zeros(1, device=device)])
    except Exception as error:  # of Triton, of the compiler of its launcher, or of the driver
        return f"its kernels do not run here: {type(error).__name__}: {error}; see whether Triton's own examples run"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def step_(tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None:
    """One step of the optimizer that the options name; see `gradalign.ops`."""
    check = functools.partial(op_validation.state_of_params, tensors, options)
    params, grads, *states, masters, steps = _read(options.op, (*tensors.in_order(), *scalars), check)[
        : len(tensors.in_order())
    ]
    _kernel(options.op)(StepTensors(params, grads, tuple(states), masters, steps), scalars, options)


@functools.cache
def __getattr__(name: str) -> Callable[..., Any]:
    if name not in VECTOR_OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    @functools.wraps(_kernel(name))
    def run(*args: object, **kwargs: object) -> Any:
        read = _read(name, (*args, *kwargs.values()))
        return _kernel(name)(*read[: len(args)], **dict(zip(kwargs, read[len(args) :], strict=True)))

    return run


def _read(op: str, args: tuple[object, ...], check: Callable[[bytearray | None], None] | None = None) -> list[Any]:
    """The arguments with the lists among them read, and checked, before anything is launched.

    torch resolves tensors whose memory is not their value for the kernels behind its dispatcher; these read addresses.
    """
    tensor_lists = importlib.import_module("gradalign.kernels.tensor_lists")
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg]
    op_validation.values_in_memory(op, [arg for arg in args if isinstance(arg, torch.Tensor)])
    read = tensor_lists.listed(lists, check)
    if read is None:
        op_validation.values_in_memory(op, lists)
        if check is not None:
            check(None)
        read = tensor_lists.listed_by_python(lists)
    found = iter(read)
    return [next(found) if isinstance(arg, (list, tuple)) and arg else arg for arg in args]


def _kernel(name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"gradalign.kernels.{name.rstrip('_')}"), name)
