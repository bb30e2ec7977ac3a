"""The kernels run under Triton's interpreter, on the CPU: a few milliseconds a block, so that sizes and cases are chosen."""

import pytest
import torch
from support import kernel_cases

pytest.register_assert_rewrite("support.op_cases", "support.step_cases")

# Around the length of a block (1024) and of a masked block (128); what is longer than a chunk has a test of its own.
kernel_cases.tensors.__defaults__ = (((), (3,), (0,), (33, 31), (1024,), (41, 25), (2, 3, 5, 7)),)

# A sum keeps float32 totals of at most 16 * 1024 / 4 terms and adds those in float64.
kernel_cases.SUM["triton"] = dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 2e-6)

LAYOUTS = {  # of each dtype; the dtypes differ in how they are loaded and rounded, the layouts in what is handed to the kernel
    "torch.float32": kernel_cases.LAYOUTS,
    "torch.bfloat16": ("contiguous", "misaligned"),
    "torch.float16": ("contiguous", "transposed"),
    "torch.float64": (),  # not a dtype of this backend
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drop the combinations of dtype and layout that teach nothing new."""
    items[:] = [item for item in items if _is_chosen(item)]


def _is_chosen(item: pytest.Item) -> bool:
    choices = getattr(getattr(item, "callspec", None), "params", {})
    layouts = LAYOUTS.get(str(choices.get("dtype")), kernel_cases.LAYOUTS)
    if "aliased" in choices:  # which of the two it is changes nothing in how a tensor is reached
        layouts = layouts[:: 2 if choices["aliased"] == "xs" else -2]
    return bool(layouts) and choices.get("layout", layouts[0]) in layouts
