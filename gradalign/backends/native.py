"""C++ kernels for the CPU and CUDA C++ kernels for NVIDIA GPUs, from `csrc/`: binaries of their own behind the same ops.

An op that mutates is one C call per list of tensors, followed in the same C loop by the bump of the version counters of what
it wrote. Python runs signal handlers and trace functions between two bytecodes, never inside a C loop: so an interrupt
finds every tensor either untouched with its old version or written with a new one, and the version tells which.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from itertools import chain, compress
from typing import Any

import torch
from torch import Tensor

from gradalign.backends import gpus, op_validation, rows, signatures
from gradalign.backends.once import once
from gradalign.backends.signatures import StepOptions, StepScalars, StepTensors, Tensors
from gradalign.extension import UnavailableError, cuda, ensure, library, shipped, why_not_loaded

NAME = "native"
NAMESPACE = signatures.NATIVE

LEAST_ROWS = 64  # in a list; shorter ones torch hands over in the time that it takes to read them

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))


@once
def why_unavailable() -> str | None:
    """Why the kernels cannot be used, with the remedy; None where they work. Builds them if they are not there."""
    try:
        binary = ensure(library.cpu_here())
        signatures.define(signatures.NATIVE)
        torch.ops.load_library(binary)
    except (UnavailableError, ModuleNotFoundError, FileNotFoundError) as error:
        return str(error)
    except OSError as error:
        return why_not_loaded(error, binary)
    return _why_not_chosen()


def _why_not_chosen() -> str | None:
    """Why no kernels are for this processor: under an emulator it may lack what the system says; None where there are some."""
    if os.environ.get("GRADALIGN_CPU_ISA") or torch._C._len_torch_dispatch_stack():
        return None  # a set that is named is refused when a kernel runs
    try:
        getattr(torch.ops, signatures.NATIVE).cpu_isa()
    except RuntimeError as error:
        return str(error)
    return None


@once
def why_not_on(device_type: str) -> str | None:
    """Why tensors on this kind of device cannot be worked on, with the remedy; None where they can. Builds as above."""
    if device_type == "cpu" or why_unavailable() is not None:
        return why_unavailable()
    if device_type != "cuda":
        return f"there are no native kernels for {device_type}"
    if torch.version.hip is not None:
        return "there are no native kernels for ROCm; the triton backend has some"
    if not torch.cuda.is_available():
        return "no GPU that this build of torch can use"
    present = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    try:
        ready = shipped(cuda.contents(present))  # needs no nvcc
        binary = ready or ensure(cuda.cuda(cuda.architectures(present), present))
        torch.ops.load_library(binary)
        _kernel("norm_dot")([torch.zeros(1, device=gpus.in_use())], [])  # a driver that it does not fit refuses here
    except (UnavailableError, ModuleNotFoundError, FileNotFoundError) as error:
        return str(error)
    except OSError as error:
        return why_not_loaded(error, binary)
    except RuntimeError as error:
        return f"the built CUDA kernels do not run: {error}"
    return None


def supports(device_type: str, dtypes: frozenset[torch.dtype]) -> bool:
    """Whether tensors of these dtypes on this kind of device can be worked on."""
    return dtypes <= DTYPES and why_not_on(device_type) is None


def cpu_isa() -> str:
    """The instruction set whose kernels run here: portable, avx2 or avx512; $GRADALIGN_CPU_ISA names another one."""
    return _kernel("cpu_isa")()


def norm_dot(xs: Tensors, ys: Tensors | None = None) -> Tensor:
    """[x.x, x.y, y.y] over all tensors; without ys the last two are 0."""
    return _run("norm_dot", (), (xs, ys or []))


def perturb_(
    params: Tensors,
    backups: Tensors,
    xs: Tensors,
    scale: Tensor,
    ys: Tensors | None = None,
    scale_y: Tensor | None = None,
    from_backups: bool = False,
) -> Tensor:
    """backup <- theta; theta <- theta + d, d = scale x + scale_y y; returns [delta.d, d.d, delta.delta]."""
    written = (params,) if from_backups else (params, backups)
    return _run("perturb_", written, (params, backups, xs, scale, ys or [], scale_y, from_backups))


def restore_(params: Tensors, backups: Tensors) -> None:
    """theta <- backup; bit for bit where the dtypes agree, else one rounding."""
    _run("restore_", (params,), (params, backups))


def swap_(params: Tensors, backups: Tensors) -> None:
    """Exchange, bit for bit."""
    _run("swap_", (params, backups), (params, backups))


def accumulate_(accs: Tensors, grads: Tensors, scale: Tensor) -> Tensor:
    """acc <- acc + scale g; returns [g.g, g.acc] with acc as it was before."""
    return _run("accumulate_", (accs,), (accs, grads, scale))


def combine_(outs: Tensors, xs: Tensors, ys: Tensors, a: Tensor, b: Tensor) -> Tensor:
    """out <- a x + b y (an out may be its x or y); returns [out.out]."""
    return _run("combine_", (outs,), (outs, xs, ys, a, b))


def aim(
    sums: Tensor,
    scale_x: Tensor,
    own: Tensor,
    radius: float,
    alpha: float,
    beta: float,
    part: float,
    unit: bool,
    others: bool,
    rounding: float,
) -> Tensor:
    """[scale_x, scale_y, eps, norm, gradient norm] of a displacement, see `reference_scalars.aim`."""
    return _kernel("aim")(sums, scale_x, own, radius, alpha, beta, part, unit, others, rounding)


def reached(sums: Tensor, aimed: Tensor, direction: bool) -> Tensor:
    """[eps, q, cosine] of a displacement that was made, see `reference_scalars.reached`."""
    return _kernel("reached")(sums, aimed, direction)


def step_(tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None:
    """One step of the optimizer that the options name; see `gradalign.ops`."""
    params, grads, states, masters, steps = tensors
    written = (params, *states, masters, steps)
    if options.zero_grads:
        written += (grads,)
    check = functools.partial(op_validation.state_of_params, tensors, options)
    _run(options.op, written, (params, grads, *states, masters, steps, *scalars), vars(options), check)


@functools.cache
def _kernel(name: str) -> Callable[..., Any]:
    why_unavailable()
    # The C function behind the op: the Python layer above it costs microseconds and has bytecodes to be interrupted at.
    op, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, NAMESPACE), op), overload or "default")._op


@functools.cache
def _lists_of(name: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which of the op's positional arguments are lists, and which are not."""
    schema = torch._C.parse_schema(f"gradalign::{name}{signatures.native_schema(signatures.SCHEMAS[name])}")
    lists = tuple(str(argument.type) == "List[Tensor]" for argument in schema.arguments if not argument.kwarg_only)
    return lists, tuple(not is_list for is_list in lists)


def _run(
    name: str,
    written: tuple[Tensors, ...],
    args: tuple[Any, ...],
    options: Mapping[str, object] | None = None,
    check: Callable[[bytearray | None], None] | None = None,
) -> Any:
    lists: tuple[tuple[Tensor, ...], ...] = ()  # for as long as the kernel runs
    read: bytearray | None = None
    if len(args[0]) >= LEAST_ROWS:
        are_lists, are_others = _lists_of(name)
        lists = tuple(map(rows.kept, compress(args, are_lists)))
        read = rows.read(lists)
        if read is not None:
            name += ".rows"
            args = (lists[0][0], torch.frombuffer(read, dtype=torch.int64), *compress(args, are_others))
    if check is not None:
        check(read)
    kernel = functools.partial(_kernel(name), **options) if options else _kernel(name)
    if not written:
        return kernel(*args)
    # One C call runs the kernel and then the bumps (see the module's docstring). A StopIteration from inside the kernel, as a
    # torch mode may raise, ends the iteration before the bumps; the missing result shows it.
    bumped = chain.from_iterable(written)
    calls = list(zip(map(kernel, *zip(args, strict=True)), map(torch._C._increment_version, (bumped,)), strict=False))
    if not calls:
        raise RuntimeError(
            f"{name}: expected a kernel that runs to its end; got StopIteration from inside it (a torch mode?)"
        )
    return calls[0][0]
