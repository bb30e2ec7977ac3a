"""The binaries of `csrc/`: shipped with the package, found in the cache, or compiled at first use.

`library` says what is compiled, `processor` for which instruction sets, `compiler` how, `cache` where it is kept,
`private_folder` why that place can be trusted, `failures` what could not be built, `loading` puts them together. Nothing here
imports torch, so that `setup.py` can use it too.
"""

from .loading import UnavailableError, build_all, ensure, load_module, shipped, switched_off, why_not_loaded

__all__ = ["UnavailableError", "build_all", "ensure", "load_module", "shipped", "switched_off", "why_not_loaded"]
