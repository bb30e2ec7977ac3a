"""Commands that a stage runs: each in a session of its own, ended in time, with whatever it has said until then."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from benchmarks import ROOT

OUT_OF_TIME = 124
GRACE = 5.0  # seconds of a command's time in which it may end by itself, once it is interrupted
PACKAGE = ROOT / "build" / "gpu"


def make_package(folder: Path) -> None:
    """The package as it would be installed, and the benchmarks beside it, by links.

    In a checkout `kernels/` and `csrc/` are outside of the package. The root itself must not be on the path: other packages
    look for a package named `kernels`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "gradalign"
    package.mkdir(parents=True)
    inside = [path for path in (ROOT / "gradalign").iterdir() if path.name != "__pycache__"]
    for path in (*inside, ROOT / "kernels", ROOT / "csrc"):
        (package / path.name).symlink_to(path)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")


def execute(command: list[str], seconds: float, **environment: str) -> tuple[int, str]:
    """Exit status and output; 124 where it ran out of time.

    The output goes to a file and not to a pipe, which would have no end while anything that the command started holds it.
    """
    path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    # Safe: without the root.
    settings = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=settings | environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_interruptible,
        )
        try:
            status = _wait(process, seconds)
        finally:
            _signal(process, signal.SIGKILL)  # a sanitizer's child too: it would go on using the GPU
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)  # for ever, where it hangs in the driver
        output.seek(0)
        text = output.read().decode(errors="replace")  # what was killed may have ended within a character
    return status, f"{text}\nstopped after {seconds:.0f} s" if status == OUT_OF_TIME else text


def _interruptible() -> None:
    """A background job of a shell ignores interruptions, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit status. What takes too long is interrupted first: pytest then says what has failed so far."""
    grace = min(GRACE, seconds / 2)
    try:
        return process.wait(seconds - grace)
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    return OUT_OF_TIME


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the process and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
