"""Runs an example in processes that torchrun could have started."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import socket
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(rank, name, port, *arguments):
    """The rows that an example prints, in a process that torchrun could have started."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = [name, *map(str, arguments)]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return [json.loads(line) for line in out.getvalue().splitlines()]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
