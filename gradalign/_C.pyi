# ruff: noqa: N999 (the name of the extension module)
"""Build information, the launch planner and the reader of lists of the native kernels."""

from torch import Tensor
from torch.nn import Parameter

def build_info() -> dict[str, object]:
    """What this binary was built from, with and for: compiler, digest, built_for, cplusplus."""

def plan(numels: list[int], page_elements: int = 32768) -> list[list[tuple[int, int, int]]]:
    """Pages of equal work, a list of (tensor, begin, length) each."""

def use_tensors(tensor: type[Tensor], parameter: type[Parameter]) -> bool:
    """Read tensors of these two types; False where torch has no interface for it."""

def rows(lists: tuple[tuple[Tensor, ...], ...]) -> bytearray | None:
    """Tuples of tensors as rows of int64, see csrc/tensor/row.h; None where a tensor is to be left to torch."""

def keys(rows: bytearray) -> list[tuple[bytes, bytes]]:
    """Of each list in rows, its addresses as int64, and what tells its dtypes, sizes and strides from others."""

def agree(rows: bytearray, num_written: int) -> bool:
    """Whether an op can take the lists in rows, of which it writes the first ones; False also where it is not sure."""
