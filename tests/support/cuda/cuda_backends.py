"""The CUDA kernels for tensors on the CPU: run by the emulated GPU or by a real one."""

from __future__ import annotations

from types import ModuleType

import pytest

from gradalign.backends import native
from support.cuda.emulated import emulated
from support.cuda.on_device import OnDevice


def cuda_backend(kind: str) -> ModuleType | OnDevice:
    """ "emulated" or "gpu"; skips or fails the test that asks for what is not there."""
    if kind == "emulated":
        if native.why_unavailable() is not None:
            pytest.skip(f"no emulated GPU: {native.why_unavailable()}")
        return emulated()
    reason = native.why_not_on("cuda")
    if reason is not None:
        pytest.fail(f"the CUDA kernels do not work here: {reason}")
    return OnDevice(native, "cuda")
