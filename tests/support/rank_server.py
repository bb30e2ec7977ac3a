"""What a process of `support.ranks` runs: a script that finds its rank, the pipe and the rest among its globals."""

from __future__ import annotations

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
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num), LOCAL_RANK=str(rank))
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


if __name__ == "server":
    given = globals()
    serve(*(given[name] for name in ("rank", "num", "store", "pipe", "timeout", "joined")))
