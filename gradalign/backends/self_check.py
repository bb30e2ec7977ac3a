"""Whether a backend computes on a device what `reference` computes there: tried before its first use.

A compiler, a driver or a GPU that the tests have not met can make a kernel wrong, and a wrong kernel is a wrong gradient
without a word. So every op runs once for each dtype, on a few small tensors, and is compared with plain torch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradalign.backends import gpus, reference
from gradalign.backends.chunks import compute_dtype
from gradalign.backends.once import once
from gradalign.backends.signatures import (
    AdamWOptions,
    LAMBOptions,
    SGDOptions,
    StepOptions,
    StepScalars,
    StepTensors,
    Tensors,
)

# Shape, strides and first element of each tensor of a list. They lie in one buffer, which is compared as a whole, so that a
# write beside a tensor is seen.
VIEWS = (
    ((1,), (1,), 0),
    ((37,), (1,), 64),
    ((4099,), (1,), 128),
    ((0,), (1,), 4288),
    ((1031,), (1,), 4289),  # its address is no multiple of 16 bytes
    ((7, 5), (12, 2), 5440),  # its elements do not fill its memory
    ((16421,), (1,), 5632),  # longer than what one block of threads takes at a time, 8192 or 16,384
)
LENGTH = 22_080  # of the buffer

# What rounding explains. An element in 16 bits is off by one unit in the last place, and seldom, since two backends round
# numbers that differ in their last bits of float32; a wider one is off by a few roundings of numbers as large as these.
ROUNDINGS = 64
ROUNDED_OTHERWISE = 0.01
# Of sums, relative to the largest of a result: terms are added in another order, on GPUs in float32 at first.
SUMS = {torch.float32: 2e-5, torch.float64: 1e-11}
SCALARS = 1e-11

Result = tuple[list[Tensor], "Tensor | None"]  # the buffers of the lists, and what the op returned


class PostponedError(Exception):
    """Nothing can be tried now: a CUDA graph is being captured, or torch hands on what it is told instead of running it."""


class Case(NamedTuple):
    """One call of an op.

    Attributes:
        op: its name.
        dtypes: of its lists. The first three have numbers of both signs, further ones are positive.
        call: (backend, *lists) -> what it returns.
    """

    op: str
    dtypes: tuple[torch.dtype, ...]
    call: Callable[..., Tensor | None]


def why_unfit(backend: ModuleType, device_type: str, dtypes: frozenset[torch.dtype]) -> str | None:
    """Why the backend must not be used for these dtypes; None where all is right. A process tries each dtype once.

    Raises:
        PostponedError: a dtype was not tried yet and cannot be now.
    """
    return next(filter(None, (_found(backend, device_type, dtype) for dtype in sorted(dtypes, key=str))), None)


@once
def _found(backend: ModuleType, device_type: str, dtype: torch.dtype) -> str | None:
    capturing = device_type == "cuda" and torch.cuda.is_current_stream_capturing()
    if capturing or torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        raise PostponedError
    return why_wrong(backend, gpus.in_use() if device_type == "cuda" else torch.device(device_type), dtype)


def why_wrong(backend: ModuleType, device: torch.device, dtype: torch.dtype) -> str | None:
    """The first op that is wrong, and how far off it is; None where all are right."""
    with _undisturbed(device):
        for case in cases(dtype, device):
            expected = _run(case, reference, device)
            try:
                wrong = _difference(case, _run(case, backend, device), expected)
            except torch.OutOfMemoryError:
                raise  # which says nothing of the kernels
            except Exception as error:  # of a kernel, its compiler or the driver
                wrong = f"raised {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            if wrong is not None:
                kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(case.dtypes))
                return f"its self-check on {device.type} failed: {case.op} ({kinds or 'float64'}) {wrong}"
    return None


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Whatever the caller has switched on does not matter, and stays. No random numbers are drawn."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            mode = torch.cuda.get_sync_debug_mode()
            if mode:  # not set for nothing: torch warns of it even then
                stack.callback(torch.cuda.set_sync_debug_mode, mode)
                torch.cuda.set_sync_debug_mode("default")  # the results are read
        yield


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Every op in this dtype; in 16 bits also beside the float32 of sums, masters and moments."""
    a, b = (torch.full((), value, dtype=torch.float64, device=device) for value in (0.37, -1.25))

    def displace(
        m: ModuleType, p: Tensors, q: Tensors, x: Tensors, y: Tensors | None = None, held: bool = False
    ) -> Tensor:
        return m.perturb_(p, q, x, a, y, None if y is None else b, held)

    yield Case("norm_dot", (dtype,), lambda m, x: m.norm_dot(x))
    yield Case("norm_dot", (dtype, dtype), lambda m, x, y: m.norm_dot(x, y))
    yield Case("perturb_", (dtype,) * 3, displace)
    yield Case("perturb_", (dtype,) * 4, displace)
    yield Case("swap_", (dtype,) * 2, lambda m, p, q: m.swap_(p, q))
    yield Case("combine_", (dtype,) * 3, lambda m, out, x, y: m.combine_(out, x, y, a, b))
    for wide in dict.fromkeys((dtype, compute_dtype(dtype))):
        directions = (dtype,) if wide != dtype else (dtype, dtype)
        yield Case("perturb_", (dtype, wide, *directions), functools.partial(displace, held=True))
        yield Case("restore_", (dtype, wide), lambda m, p, q: m.restore_(p, q))
        yield Case("accumulate_", (wide, dtype), lambda m, acc, g: m.accumulate_(acc, g, a))
        yield from _step_cases(dtype, wide, device)
    if dtype == torch.bfloat16:
        sgd, scalars = SGDOptions(momentum=0.9), _step_scalars(device, seed=-(2**40) + 12345)
        yield Case(sgd.op, (dtype,) * 3, functools.partial(_step, sgd, scalars, False))
    yield from _scalar_cases(device)


def _step_cases(dtype: torch.dtype, wide: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Steps, and steps that are skipped, with moments in `wide`, and with masters where that is wider."""
    kinds: tuple[StepOptions, ...] = (
        AdamWOptions(beta1=0.9, beta2=0.99, eps=1e-8),
        SGDOptions(momentum=0.9, dampening=0.1),
        LAMBOptions(beta1=0.9, beta2=0.99, eps=1e-6),
    )
    masters = wide != dtype
    for options in kinds:
        lists = (dtype, dtype, *(wide,) * (len(options.required_states) + masters))
        for skip in (0.0, 1.0):
            yield Case(options.op, lists, functools.partial(_step, options, _step_scalars(device, skip), masters))


def _step_scalars(device: torch.device, skip: float = 0.0, seed: int | None = None) -> StepScalars:
    def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.full((), value, dtype=dtype, device=device)

    seeds = None if seed is None else number(seed, torch.int64)
    return StepScalars(number(0.5), number(0.01), number(0.1), number(skip, torch.float32), seeds)


def _step(
    options: StepOptions,
    scalars: StepScalars,
    masters: bool,
    backend: ModuleType,
    p: Tensors,
    g: Tensors,
    *rest: Tensors,
) -> Tensor:
    """The second step of every other tensor, the first of the rest; returns how many were made."""
    steps = [torch.full((), float(i % 2), dtype=torch.float32, device=p[0].device) for i in range(len(p))]
    given = dict(zip(options.required_states, rest, strict=False))
    states = tuple(given.get(name, []) for name in options.states)
    backend.step_(StepTensors(p, g, states, rest[-1] if masters else [], steps), scalars, options)
    return torch.stack(steps).double()


def _scalar_cases(device: torch.device) -> Iterator[Case]:
    """The numbers of a displacement, for gradients and for unit gradients."""

    def numbers(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)

    scale, own = numbers(0.7, 3.0).unbind()
    for unit in (False, True):
        settings: tuple[Any, ...] = (0.01, 1.0, -1.0, 0.3, unit, True, 1e-12)
        yield Case("aim", (), lambda m, *, s=settings: m.aim(numbers(9, 14, 25), scale, own, *s))
        yield Case("reached", (), lambda m, *, u=unit: m.reached(numbers(1, 4, 1.1), numbers(0, 0, 0.25, 8, 0), u))


def _run(case: Case, backend: ModuleType, device: torch.device) -> Result:
    buffers = [_numbers(i, device).to(dtype) for i, dtype in enumerate(case.dtypes)]
    return buffers, case.call(backend, *([b.as_strided(*view) for view in VIEWS] for b in buffers))


def _numbers(i: int, device: torch.device) -> Tensor:
    """Between 0.25 and 2 without a pattern, the same in every call: multiples of a root, modulo 1."""
    parts = torch.arange(LENGTH, dtype=torch.float64, device=device) * math.sqrt((2, 3, 5, 7, 11)[i]) % 1
    values = 0.25 + 1.75 * parts
    return values if i > 2 else torch.where((parts * 64).long() % 2 == 0, values, -values)


def _difference(case: Case, actual: Result, expected: Result) -> str | None:
    """How far off a result is that rounding does not explain. One read from the device."""
    arithmetic = compute_dtype(*case.dtypes)
    found = [_off(a, e, arithmetic) for a, e in zip(actual[0], expected[0], strict=True)]
    if expected[1] is not None:
        sums = expected[1].abs()
        found.append(
            _compared(actual[1], expected[1], sums.amax() * SUMS[arithmetic] if case.dtypes else sums * SCALARS)
        )
    for most, times, share in torch.stack(found).tolist():
        if times > 1:
            return f"is off by {most:.2g}, {times:.2g} times what rounding explains"
        if share > ROUNDED_OTHERWISE:
            return f"rounds {share:.0%} of the elements otherwise"
    return None


def _off(actual: Tensor, expected: Tensor, arithmetic: torch.dtype) -> Tensor:
    last_place = torch.finfo(expected.dtype).eps * expected.double().abs()
    allowed = last_place + ROUNDINGS * torch.finfo(arithmetic).eps
    return _compared(actual, expected, allowed, seldom=expected.dtype.itemsize == 2)


def _compared(actual: Tensor | None, expected: Tensor, allowed: Tensor, seldom: bool = False) -> Tensor:
    """[the largest difference, the largest in units of what is allowed, the share of elements that differ if `seldom`]."""
    if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
        got = "nothing" if actual is None else f"{actual.dtype} {tuple(actual.shape)}"
        raise TypeError(f"expected {expected.dtype} {tuple(expected.shape)}; got {got}")
    # A NaN is infinitely far off. Where nothing may differ, any difference is divided by the smallest number.
    difference = (actual.double() - expected.double()).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    times = difference / allowed.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.stack((difference.amax(), times.amax(), (difference > 0).double().mean() * seldom))
