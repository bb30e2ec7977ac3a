from __future__ import annotations

import pytest
import torch
from support import kernel_cases
from support.cuda.cuda_backends import cuda_backend

pytest.register_assert_rewrite("support.op_cases")

# Sums of a thread within one chunk of 8192 elements are float32 (32 terms), those of chunks float64.
kernel_cases.SUM["cuda"] = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}


BACKENDS = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return cuda_backend(request.param)


def pytest_collection_modifyitems(config, items):
    # The emulated GPU is slow. A tensor that is expanded is read like one that is strided, and float16 like bfloat16.
    def spared(item):
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("backend") != "emulated":
            return False
        flat = params.get("layout", "contiguous") in ("contiguous", "misaligned")
        return params.get("layout") == "expanded" or (params.get("dtype") is torch.float16 and not flat)

    skipped = [item for item in items if spared(item)]
    config.hook.pytest_deselected(items=skipped)
    items[:] = [item for item in items if not spared(item)]


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
