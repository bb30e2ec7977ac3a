# ruff: noqa: N999 (the name of the extension module)
"""Stands in for the extension module where it was not built ahead of time: builds it at first use and takes its place."""

import sys

from gradalign.extension import UnavailableError, load_module

try:
    sys.modules[__name__] = load_module()
except UnavailableError as error:
    raise ImportError(f"gradalign._C: {error}") from error
