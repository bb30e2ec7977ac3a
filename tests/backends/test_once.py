"""What a process does once, also where threads ask for it at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from gradalign.backends.once import once

THREADS = 4

FIRST_STEPS = """
import threading, torch, gradalign
models = [torch.nn.Linear(3, 1) for _ in range(4)]
start = threading.Barrier(4)

def work(model):
    start.wait()
    gradalign.GradAlign(model, 0.1, backend="native").backward(lambda x: model(x).square().mean(), list(torch.randn(4, 8, 3)))

threads = [threading.Thread(target=work, args=(model,)) for model in models]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print([p.grad is not None for model in models for p in model.parameters()].count(True))
"""


def in_threads(call):
    start, found = threading.Barrier(THREADS), []

    def work():
        start.wait()
        found.append(call())

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_threads_that_ask_at_the_same_time_get_the_result_of_one_call():
    calls = []

    @once
    def slow(x):
        calls.append(x)
        time.sleep(0.05)
        return object()

    found = in_threads(lambda: slow(1))
    assert len(found) == THREADS
    assert len(set(map(id, found))) == 1
    assert calls == [1]


def test_one_may_ask_another():
    @once
    def inner():
        return 1

    @once
    def outer():
        return inner() + 1

    assert in_threads(outer) == [2] * THREADS


def test_an_error_is_not_kept():
    calls = []

    @once
    def fails():
        calls.append(1)
        raise ValueError("not yet")

    for _ in range(2):
        with pytest.raises(ValueError, match="not yet"):
            fails()
    assert len(calls) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_does_not_wait_for_a_thread_of_its_parent():
    code = """
import os, threading, time
from gradalign.backends.once import once
inside, done = threading.Event(), threading.Event()

@once
def slow():
    inside.set()
    done.wait(20)

@once
def quick():
    return 7

thread = threading.Thread(target=slow)
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    os._exit(quick())
_, status = os.waitpid(child, 0)
done.set()
print(os.waitstatus_to_exitcode(status))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "7", found.stderr


def test_the_first_steps_of_a_process_may_be_in_several_threads():
    found = subprocess.run([sys.executable, "-c", FIRST_STEPS], capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == "8", found.stderr[-2000:]
