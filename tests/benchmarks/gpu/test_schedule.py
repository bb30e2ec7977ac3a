"""How the time is shared among the stages, and how a stage ends."""

from __future__ import annotations

import pytest

from benchmarks.gpu import schedule
from benchmarks.gpu.report import arguments
from benchmarks.gpu.schedule import LEAST, NO_TIME, SANITIZERS, SHARES, Run


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test moves."""
    now = [1000.0]
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    return now


def test_the_shares_are_what_there_is():
    assert sum(SHARES.values()) == 60 * arguments([]).minutes - 20
    assert all(SHARES[name] > least for name, least in LEAST.items())
    assert list(SHARES)[2] == SANITIZERS[0]  # right after the tests


def test_stages_that_take_all_they_may_leave_every_other_its_share(tmp_path, clock):
    run, taken = Run(tmp_path, 520), {}

    def work(seconds):
        clock[0] += seconds
        taken[name] = seconds
        return True, ""

    for name in SHARES:
        run.stage(name, work)
    assert taken == pytest.approx(SHARES)


def test_what_a_stage_leaves_is_for_those_after_it(tmp_path, clock):
    run = Run(tmp_path, 520, skip=("tests",))
    assert run.left_for("build") == 95 + 110
    clock[0] += 20
    assert run.left_for("tests") == 95 + 110 - 20
    assert run.left_for("memcheck") == 95 + 110 - 20 + 50
    assert Run(tmp_path, 260).left_for("initcheck") == 260
    assert Run(tmp_path, 260).left_for("build") == 95 / 2


@pytest.mark.parametrize("tool", SANITIZERS)
def test_a_sanitizer_without_the_time_for_it_is_not_begun(tool, tmp_path, clock):
    run = Run(tmp_path, 520)
    clock[0] += run.left_for(tool) - 34
    done = run.stage(tool, pytest.fail)
    assert (done.status, done.summary) == ("skipped", NO_TIME)
    clock[0] -= 2
    assert run.stage(tool, lambda _: (True, "")).status == "passed"


def test_how_stages_end(tmp_path):
    run = Run(tmp_path, 520, ("tests",))
    assert run.stage("build", lambda _: (True, "first\nlast line\n \n")).summary == "last line"
    assert (tmp_path / "build.log").read_text() == "first\nlast line\n \n"
    assert run.stage("memcheck", lambda _: (False, "ERROR SUMMARY: 1 error")).status == "failed"
    assert run.stage("tests", pytest.fail).summary == "asked for"
    run.deadline = schedule.time.monotonic()
    assert run.stage("initcheck", pytest.fail).summary == "no time left"


def test_a_stage_that_raises_has_failed(tmp_path):
    run = Run(tmp_path, 520)

    def broken(seconds):
        raise OSError("no space left \udce2")

    done = run.stage("build", broken)
    assert done.status == "failed"
    assert done.summary.startswith("OSError: no space left")
    assert "in broken" in (tmp_path / "build.log").read_text()
    assert run.stage("tests", lambda _: (True, "")).status == "passed"
