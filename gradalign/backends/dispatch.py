"""Chooses the backend that runs an op.

`auto` takes the first of native, triton and reference that works for the device and the dtypes, and logs once which it took
and why not an earlier one. A backend that is asked for by name is used or refused; there is no silent fallback.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType
from typing import Literal, get_args

import torch

from gradalign.engine import validation

BackendName = Literal["auto", "native", "triton", "reference"]
ORDER = ("native", "triton", "reference")

log = logging.getLogger("gradalign")


@functools.cache
def backend(name: str, device_type: str, dtypes: frozenset[torch.dtype]) -> ModuleType:
    """The module whose functions run the ops.

    Args:
        name: "auto" or one of `ORDER`.
        device_type: "cpu", "cuda", ...
        dtypes: the storage dtypes of the tensors.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a named backend that is missing or does not know the device or a dtype; lists what is there.
    """
    validation.one_of("backend", name, get_args(BackendName))
    if name == "auto":
        return _best(device_type, dtypes)
    reason = _unfit(name, device_type, dtypes)
    if reason is not None:
        there = [other for other in ORDER if _unfit(other, device_type, dtypes) is None]
        raise RuntimeError(f'backend "{name}": {reason}; available here: {", ".join(there)}')
    return load(name)


def load(name: str) -> ModuleType:
    """The backend's module, whether or not it works here."""
    return importlib.import_module(f"gradalign.backends.{name}")


def _best(device_type: str, dtypes: frozenset[torch.dtype]) -> ModuleType:
    reasons: list[str] = []
    for name in ORDER:
        reason = _unfit(name, device_type, dtypes)
        if reason is None:
            log.info("backend %s on %s%s", name, device_type, "".join(f"; not {why}" for why in reasons))
            return load(name)
        reasons.append(f"{name} ({reason})")
    raise AssertionError("reference supports everything")


def _unfit(name: str, device_type: str, dtypes: frozenset[torch.dtype]) -> str | None:
    backend = load(name)
    reason = backend.why_unavailable()
    if reason is None and not backend.supports(device_type, dtypes):
        why_not_on = getattr(backend, "why_not_on", lambda _: None)
        reason = why_not_on(device_type) or f"does not support {', '.join(sorted(map(str, dtypes)))} on {device_type}"
    return reason
