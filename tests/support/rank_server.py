"""What a process of `support.ranks` runs: a script that finds its rank, the pipe and the rest among its globals.

Given several pipes it imports modules, and forks a process for each but the first: the imports are what costs.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist


def serve(rank: int, num: int, store: str, pipe, timeout, joined: bool) -> None:
    """Run what comes through the pipe until it is closed."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(num))
    torch.set_num_threads(1)
    runpy.run_path(str(Path(__file__).parents[1] / "import_path.py"))
    if joined:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num, timeout=timeout)
    while True:
        try:
            file, name, args = pipe.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            pipe.send((True, getattr(_module(file), name)(rank, *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _module(file: str):
    """A test file as a module."""
    name = f"_on_rank_{Path(file).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def lead(first: int, pipes: list, num: int, store: str, timeout, joined: bool, imports) -> None:
    """Serve as rank `first`, and fork the ranks after it, one for each pipe."""
    os.setpgid(0, 0)
    for name in imports:
        importlib.import_module(name)
    own = 0
    for place in range(1, len(pipes)):
        if os.fork() == 0:
            own = place
            break
    for place, pipe in enumerate(pipes):
        if place != own:
            pipe.close()
    serve(first + own, num, store, pipes[own], timeout, joined)
    if own:
        os._exit(0)  # what comes after it is for the first one to do


if __name__ == "server":
    given = globals()
    lead(*(given[name] for name in ("first", "pipes", "num", "store", "timeout", "joined", "imports")))
