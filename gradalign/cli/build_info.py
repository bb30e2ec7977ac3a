"""What the native extension `gradalign._C` says of its build, and how its launch planner cuts up a known model."""

from __future__ import annotations

import importlib


def examine() -> dict[str, object]:
    """Compiler, target and the planner's pages; or {"why_not": reason} where the extension cannot be built or loaded."""
    try:
        extension = importlib.import_module("gradalign._C")
        info = extension.build_info()
        numels = bert_base()
        pages = extension.plan(numels)
    except Exception as error:  # a broken installation is what doctor is asked about
        return {"why_not": str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"}
    planner = {"tensors": len(numels), "elements": sum(numels), "pages": len(pages)}
    return {**info, "planner": planner, "why_not": None}


def as_text(found: dict) -> list[str]:
    """The findings as lines of "name  value"."""
    if found["why_not"] is not None:
        return [f"  not built     {found['why_not']}"]
    planner = found["planner"]
    return [
        f"  compiler      {found['compiler']}",
        f"  built for     {found['built_for']}, C++ {found['cplusplus']}, sources {found['digest'][:12]}",
        f"  planner       the {planner['tensors']} tensors of BERT-base ({planner['elements'] / 1e6:.1f}M elements) "
        f"are {planner['pages']:,} pages of equal work",
    ]


def bert_base() -> list[int]:
    """The sizes of BERT-base's parameters (Devlin et al. 2019, arXiv:1810.04805), in order."""
    vocabulary, positions, hidden, inner, layers = 30522, 512, 768, 3072, 12

    def linear(fan_in: int, fan_out: int) -> list[int]:
        return [fan_in * fan_out, fan_out]

    norm = [hidden, hidden]
    embeddings = [vocabulary * hidden, positions * hidden, 2 * hidden, *norm]
    attention = linear(hidden, hidden) * 4 + norm
    feed_forward = [*linear(hidden, inner), *linear(inner, hidden), *norm]
    return embeddings + (attention + feed_forward) * layers + linear(hidden, hidden)
