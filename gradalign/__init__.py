"""Train with gradients that agree between micro-batches."""

from gradalign._version import __version__

__all__ = ["__version__"]
