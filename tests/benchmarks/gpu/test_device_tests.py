"""Which tests a machine with a GPU runs, each file in a process of its own."""

from __future__ import annotations

import pytest

from benchmarks.gpu import device_tests


def test_the_tests_for_a_gpu_are_found(tmp_path, monkeypatch):
    found = device_tests.files()
    of_the_conftest = {f"tests/cuda/test_cuda_{name}.py" for name in ("ops", "steps")}
    assert of_the_conftest | {"tests/kernels/test_on_gpu.py", "tests/optim/test_no_sync.py"} <= set(found)
    assert "tests/benchmarks/gpu/test_device_tests.py" not in found  # a text in it has the mark
    (tmp_path / "tests" / "deep").mkdir(parents=True)
    (tmp_path / "tests" / "deep" / "test_a.py").write_text("@pytest.mark.gpu\ndef test_b(): ...\n")
    (tmp_path / "tests" / "test_c.py").write_text("def test_d(): ...\n")
    monkeypatch.setattr(device_tests, "ROOT", tmp_path)
    assert device_tests.files() == ["tests/deep/test_a.py"]
    (tmp_path / "tests" / "conftest.py").write_text('GPU = pytest.param("gpu", marks=pytest.mark.gpu)\n')
    assert set(device_tests.files()) == {"tests/deep/test_a.py", "tests/test_c.py"}


def test_every_folder_has_its_turn_before_the_second_file_of_one():
    folders = [name.rpartition("/")[0] for name in device_tests.files()]
    assert len(set(folders)) > 3
    assert len(set(folders[: len(set(folders))])) == len(set(folders))


@pytest.fixture
def processes(monkeypatch):
    """Files that end as is said, by name; each takes all the time that it may where it runs out of it."""
    now, asked = [0.0], []
    monkeypatch.setattr(device_tests.time, "monotonic", lambda: now[0])

    def set_up(ends):
        def execute(command, seconds):
            status, text = ends[command[-1]]
            asked.append((command[-1], seconds))
            now[0] += seconds if status == 124 else 1
            return status, text

        monkeypatch.setattr(device_tests, "execute", execute)
        monkeypatch.setattr(device_tests, "files", lambda: list(ends))
        return asked

    return set_up


def test_results_are_summed_over_the_files(processes):
    interleaved = "c.py::test_1 Timeout (0:00:30)!\nThread 0x1 (most recent call first):\nPASSED [ 50%]\n"
    ends = {
        "a.py": (0, "a.py::test_1 PASSED [ 50%]\na.py::test_2 PASSED [100%]\n=== 2 passed, 7 deselected in 1.0s ==="),
        "b.py": (5, "=== no tests ran in 0.1s ==="),
        "c.py": (0, f"{interleaved}=== 1 passed, 1 skipped, 2 warnings in 91.02s (0:01:31) ==="),
    }
    asked = processes(ends)
    passed, text = device_tests.run(110)
    assert passed
    assert [name for name, _ in asked] == list(ends)
    assert text.splitlines()[-1] == "3 passed, 1 skipped"
    assert interleaved in text


def test_a_file_that_crashes_or_hangs_takes_no_other_with_it(processes):
    ends = {
        "a.py": (124, "a.py::test_1[an id, with words] PASSED [ 20%]\na.py::test_2 \nstopped after 1 s"),
        "b.py": (-6, "b.py::test_1 FAILED [ 50%]\nb.py::test_2 FAILED [100%]\nan illegal memory access"),
        "c.py": (124, ""),
        "d.py": (0, "d.py::test_1 PASSED [100%]\n"),
    }
    asked = processes(ends)
    passed, text = device_tests.run(110)
    assert not passed
    assert text.splitlines()[-1] == ("2 passed, 2 failed; out of time: a.py; exit status -6: b.py; out of time: c.py")
    assert [seconds > 10 for _, seconds in asked] == [True] * 4
    assert sum(seconds for name, seconds in asked if name in "a.py c.py") < 110


def test_the_first_file_has_the_time_to_compile(processes):
    asked = processes({f"{number}.py": (0, "") for number in range(10)})
    device_tests.run(150)
    assert asked[0] == ("0.py", 51)


def test_nothing_that_passed_is_no_success(processes):
    processes({"a.py": (0, "a.py::test_1 SKIPPED (needs a CUDA device) [100%]\n")})
    assert device_tests.run(110)[0] is False
    processes({"a.py": (0, "a.py::test_1 PASSED [100%]\n")})
    assert device_tests.run(4) == (False, "no test ran; no time left: a.py")


def test_a_test_that_hangs_has_its_stack_written_before_its_process_is_stopped(processes, monkeypatch):
    processes({"a.py": (0, ""), "b.py": (0, "")})
    commands = []
    monkeypatch.setattr(
        device_tests, "execute", lambda command, seconds: (commands.append((command, seconds)), (0, ""))[1]
    )
    for seconds in (20, 400):
        device_tests.run(seconds)
    timeouts = [float(command[-2].partition("=")[2]) for command, _ in commands]
    assert timeouts[0] < commands[0][1] - 5
    assert timeouts[-2:] == [30, 30]
