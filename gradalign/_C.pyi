# ruff: noqa: N999 (the name of the extension module)
"""Build information and the launch planner of the native kernels."""

def build_info() -> dict[str, object]:
    """What this binary was built from, with and for: compiler, digest, built_for, cplusplus."""

def plan(numels: list[int], page_elements: int = 32768) -> list[list[tuple[int, int, int]]]:
    """Pages of equal work, a list of (tensor, begin, length) each."""
