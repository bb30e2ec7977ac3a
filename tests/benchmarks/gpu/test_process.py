"""How a command of a stage ends, and what is left of what it said."""

from __future__ import annotations

import signal
import sys
import time

from benchmarks.gpu.device_tests import TELLING
from benchmarks.gpu.process import execute


def test_what_takes_too_long_is_stopped_with_its_children(tmp_path):
    child = f"import time, pathlib; time.sleep(2.5); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    parent = f"import subprocess, sys; print('begun'); subprocess.run([sys.executable, '-c', {child!r}])"
    status, text = execute([sys.executable, "-c", parent], 1.8)
    assert status == 124
    assert text.startswith("begun\n")
    assert text.endswith("\nstopped after 2 s")
    time.sleep(2.7)
    assert not (tmp_path / "late").exists()


def test_what_ignores_the_interruption_is_killed():
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('begun'); time.sleep(60)"
    begun = time.monotonic()
    assert execute([sys.executable, "-c", deaf], 2.0) == (124, "begun\n\nstopped after 2 s")
    assert time.monotonic() - begun < 10


def test_a_grandchild_that_holds_the_output_is_not_waited_for():
    child = "import time; time.sleep(20)"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); print('ended')"
    begun = time.monotonic()
    assert execute([sys.executable, "-c", parent], 15) == (0, "ended\n")
    assert time.monotonic() - begun < 10


def test_bytes_that_are_no_text_are_replaced():
    cut = "import sys; sys.stdout.buffer.write(b'a caf\\xc3')"
    assert execute([sys.executable, "-c", cut], 20) == (0, "a caf\ufffd")


def test_a_command_is_interrupted_where_its_parent_ignores_it():
    """As a background job of a shell does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, text = execute([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT))"], 20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "default_int_handler" in text


def test_tests_that_are_stopped_say_what_failed_and_which_one_ran(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text(
        "import time\n\n"
        "def test_that_fails():\n    assert sum([1, 2]) == 4\n\n"
        "def test_that_hangs():\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *TELLING, str(path)]
    status, text = execute([*command, "-o", "faulthandler_timeout=1"], 14)
    assert status == 124
    assert "test_that_fails FAILED" in text
    assert "assert 3 == 4" in text  # the traceback, which pytest writes at its end
    assert "::test_that_hangs" in text
    assert "Timeout (0:00:01)!" in text
    assert text.count("1 failed") == 1
