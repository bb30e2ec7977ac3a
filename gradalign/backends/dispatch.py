"""Chooses the backend that runs an op.

`auto` takes the first of native, triton and reference that works for the device and the dtypes, and logs once which it took
and why not an earlier one. A backend that is asked for by name is used or refused; there is no silent fallback. On devices
other than the CPU a backend works only where `self_check` finds that it computes what `reference` computes.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType
from typing import Literal, get_args

import torch

from gradalign.backends import self_check
from gradalign.engine import validation

BackendName = Literal["auto", "native", "triton", "reference"]
ORDER = ("native", "triton", "reference")

log = logging.getLogger("gradalign")


def backend(name: str, device_type: str, dtypes: frozenset[torch.dtype]) -> ModuleType:
    """The module whose functions run the ops.

    Args:
        name: "auto" or one of `ORDER`.
        device_type: "cpu", "cuda", ...
        dtypes: the storage dtypes of the tensors.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a named backend that is missing, does not know the device or a dtype, or computes something wrong there;
            lists what is there.
    """
    try:
        return _checked(name, device_type, dtypes)
    except self_check.PostponedError:
        return _choose(name, device_type, dtypes, check=False)  # not kept: the next call may be able to check


@functools.cache
def _checked(name: str, device_type: str, dtypes: frozenset[torch.dtype]) -> ModuleType:
    return _choose(name, device_type, dtypes, check=True)


def load(name: str) -> ModuleType:
    """The backend's module, whether or not it works here."""
    return importlib.import_module(f"gradalign.backends.{name}")


def missing(name: str, device_type: str, dtypes: frozenset[torch.dtype]) -> str | None:
    """Why a backend is not there for tensors of these dtypes on this kind of device; None where it is."""
    backend = load(name)
    reason = backend.why_unavailable()
    if reason is None and not backend.supports(device_type, dtypes):
        why_not_on = getattr(backend, "why_not_on", lambda _: None)
        reason = why_not_on(device_type) or f"does not support {', '.join(sorted(map(str, dtypes)))} on {device_type}"
    return reason


def wrong(name: str, device_type: str, dtypes: frozenset[torch.dtype]) -> str | None:
    """Which op of a backend that is there computes something else than `reference`; None where all are right.

    Raises:
        PostponedError: see `self_check.why_unfit`.
    """
    if device_type == "cpu" or name == "reference":
        return None
    return self_check.why_unfit(load(name), device_type, dtypes)


def _choose(name: str, device_type: str, dtypes: frozenset[torch.dtype], check: bool) -> ModuleType:
    validation.one_of("backend", name, get_args(BackendName))
    if name == "auto":
        return _best(device_type, dtypes, check)
    reason = missing(name, device_type, dtypes)
    if reason is None and check:
        reason = wrong(name, device_type, dtypes)
    if reason is not None:
        # Those are not checked for a message: that may take compiling their kernels.
        there = [other for other in ORDER if other != name and missing(other, device_type, dtypes) is None]
        raise RuntimeError(f'backend "{name}": {reason}; available here: {", ".join(there)}')
    return load(name)


def _best(device_type: str, dtypes: frozenset[torch.dtype], check: bool) -> ModuleType:
    reasons: list[str] = []
    for name in ORDER:
        reason = missing(name, device_type, dtypes)
        if reason is None and check:
            reason = wrong(name, device_type, dtypes)
            if reason is not None:
                _warn(f"backend {name} is not used: {reason}; please report this with what `gradalign doctor` prints")
        if reason is None:
            log.info("backend %s on %s%s", name, device_type, "".join(f"; not {why}" for why in reasons))
            return load(name)
        reasons.append(f"{name} ({reason})")
    raise AssertionError("reference supports everything")


@functools.cache
def _warn(message: str) -> None:
    """Once, however many combinations of dtypes are asked for."""
    log.warning(message)
