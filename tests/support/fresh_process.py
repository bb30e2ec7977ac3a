"""Processes that have imported torch and nothing of ours, without the seconds that importing torch takes each of them.

One process imports torch and waits; every run is a fork of it, with its own environment, folder, arguments and streams. A fork
is what a new `python` would be after `import torch`: what it runs imports gradalign by itself and decides everything else
that is decided once in a process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping
from pathlib import Path

LIMIT = 300  # seconds of one run


def fresh_python(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` would return.

    Args:
        arguments: as on the command line: `-c code`, `-m module`, or a script, each with what follows.
        cwd: the folder to run in; this process's if None.
        env: the whole environment, as for `subprocess.run`; this process's if None. Of what Python itself reads before
            it runs anything, only PYTHONPATH has an effect.
        check: raise where the exit status is not 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "streams": streams,
        }
        status = _ask(json.dumps(request))
        out, err = (Path(name).read_text() for name in streams)
    done = subprocess.CompletedProcess([sys.executable, *request["arguments"]], status, out, err)
    if check:
        done.check_returncode()
    return done


def _ask(request: str) -> int:
    """The exit status of the fork, negative for a signal."""
    server = _server()
    timer = threading.Timer(LIMIT, _end, (server,))
    timer.start()
    try:
        server.stdin.write(request + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    except BaseException:  # an answer that nobody read would be taken for the next one's
        _server.cache_clear()
        _end(server)
        raise
    finally:
        timer.cancel()
    if not answer:
        _server.cache_clear()
        raise RuntimeError(f"the process that forks has ended, after {LIMIT} s or by itself, at {request}")
    return int(answer)


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    """With what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _serve() -> None:
    import torch  # noqa: F401

    sys.path.remove(str(Path(__file__).parent))  # a fork has its own first entry
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            _become(request)
            status = _run(request["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # taking torch down would touch all of the memory that is shared with this process
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def _become(request: dict) -> None:
    """Take on the streams, environment and folder of a run."""
    files = [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for name in request["streams"]]
    files = [os.open(os.devnull, os.O_RDONLY), *files]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    for path in reversed([path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]):
        sys.path.insert(0, path)


def _run(arguments: list[str]) -> int:
    """As Python's own command line does; returns the exit status."""
    try:
        _run_main(*arguments)
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        shown = error.__traceback__
        while shown is not None and shown.tb_frame.f_code.co_filename == __file__:
            shown = shown.tb_next  # the frames of this file are none of the program's
        traceback.print_exception(type(error), error, shown)
        status = 1
    else:
        status = 0
    if not isinstance(status, int | None):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    return int(status or 0)


def _run_main(option: str, *rest: str) -> None:
    if option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif option == "-m":
        sys.argv = ["-m", *rest[1:]]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [option, *rest]
        sys.path.insert(0, str(Path(option).resolve().parent))
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    _serve()
