"""Trained parameters that are stored quantised."""

from __future__ import annotations

from torch import Tensor


def not_quantised(p: Tensor) -> None:
    """A trained parameter is no quantised weight of torchao, which rounds what is written into it at random.

    Raises:
        TypeError: it is.
    """
    kind = type(p)
    if kind.__module__.partition(".")[0] == "torchao":
        raise TypeError(
            f"expected parameters in a floating-point dtype; got {kind.__qualname__} of torchao, which stores int8 and rounds "
            "what is written at random, so that a displacement would neither arrive nor come back; train adapters on a frozen "
            "quantised base (LoRA), or quantise after training"
        )
