"""The kernels run under Triton's interpreter, on the CPU: a few milliseconds a block, so that sizes and cases are chosen."""

import functools
import inspect

import pytest
import torch
import triton.language as tl
from support import kernel_cases
from triton.runtime import interpreter

pytest.register_assert_rewrite("support.op_cases", "support.step_cases")

# Around the length of a block (1024) and of a masked block (128); what is longer than a chunk has a test of its own.
kernel_cases.tensors.__defaults__ = (((), (3,), (0,), (33, 31), (1024,), (41, 25), (2, 3, 5, 7)),)

# A sum keeps float32 totals of at most 128 terms and adds those in float64.
kernel_cases.SUM["triton"] = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 2e-6)

LAYOUTS = {  # of each dtype; the dtypes differ in how they are loaded and rounded, the layouts in what is handed to the kernel
    "torch.float32": kernel_cases.LAYOUTS,
    "torch.bfloat16": ("contiguous", "misaligned"),
    "torch.float16": ("contiguous", "transposed"),
    "torch.float64": (),  # not a dtype of this backend
}


@functools.cache
def _builtins(package: object) -> list[str]:
    return [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]


def _patch_builtin(package, builder, scope) -> None:
    for name in _builtins(package):
        member = getattr(package, name)
        if tl.core.is_builtin(member):  # not yet patched
            interpreter._patch_attr(package, name, member, builder, scope)


# The interpreter looks through triton.language anew for every call of a device function: half of its time.
interpreter._patch_builtin = _patch_builtin


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drop the combinations of dtype and layout that teach nothing new."""
    items[:] = [item for item in items if _is_chosen(item)]


def _is_chosen(item: pytest.Item) -> bool:
    choices = getattr(getattr(item, "callspec", None), "params", {})
    layouts = LAYOUTS.get(str(choices.get("dtype")), kernel_cases.LAYOUTS)
    if "aliased" in choices:  # which of the two it is changes nothing in how a tensor is reached
        layouts = layouts[:: 2 if choices["aliased"] == "xs" else -2]
    return bool(layouts) and choices.get("layout", layouts[0]) in layouts
