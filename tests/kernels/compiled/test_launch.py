"""The host side on a machine without a GPU: what is launched, with what, how often, and what an interrupt leaves."""

from __future__ import annotations

import contextlib
import gc
import sys
from types import FrameType
from typing import Any

import pytest
import torch
from support.triton import no_gpu
from triton import knobs

from gradalign.backends import rows, signatures, triton
from gradalign.kernels import launch, tables
from gradalign.kernels.sums import sum_chunks
from gradalign.kernels.sweep import CHUNK, sweep
from gradalign.kernels.tensor_lists import entry_of

HALF = torch.tensor(0.5)


@pytest.fixture(scope="module", autouse=True)
def driver() -> None:
    no_gpu.install()


@pytest.fixture(autouse=True)
def launches() -> list[tuple]:
    no_gpu.launches.clear()
    return no_gpu.launches


@pytest.fixture(autouse=True, params=["the module", "Python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What reads the lists: `gradalign._C`, or Python where it is not there."""
    if request.param == "Python":
        monkeypatch.setattr(rows, "reader", lambda: None)
    elif rows.reader() is None:
        pytest.skip("gradalign._C is not there")
    return request.param


def ones(*sizes: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.ones(n, dtype=dtype) for n in sizes]


def test_one_launch_a_combination_of_dtypes_and_one_for_the_sums(launches: list[tuple]) -> None:
    xs = [*ones(10, CHUNK + 1), *ones(7, dtype=torch.bfloat16), *ones(3)]
    triton.norm_dot(xs)
    # float32: chunks 1 + 2 + 1; bfloat16: 1; then the sums.
    assert [grid for grid, *_ in launches] == [(4, 1, 1), (1, 1, 1), (3, 1, 1)]
    assert {stream for _, stream, *_ in launches} == {7}


def test_what_the_kernel_gets(launches: list[tuple]) -> None:
    params, backups, xs = ones(10, 3 * CHUNK), ones(10, 3 * CHUNK), ones(10, 3 * CHUNK)
    triton.perturb_(params, backups, xs, HALF)
    _, _, chunks, numels, first, total, columns, scalars, *_ = launches[0]
    assert chunks.tolist() == [0, 1 << 32, 1 << 32 | 1, 1 << 32 | 2]
    assert numels.tolist() == [10, 3 * CHUNK]
    assert (first, total) == (0, 4)
    assert [c.tolist() for c in columns] == [[t.data_ptr() for t in ts] for ts in (params, backups, xs)]
    assert scalars == (HALF,)


def test_a_second_call_compiles_nothing_and_makes_no_table(
    launches: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    accs, grads = ones(5, 6), ones(5, 6)
    for _ in range(2):
        triton.accumulate_(accs, grads, HALF)
    monkeypatch.setattr(launch, "Compiled", None)
    tables = launches[-2][2:5], launches[-2][6]
    triton.accumulate_(accs, grads, HALF)
    assert all(map(same, tables[0][:2], launches[-2][2:4]))
    assert all(map(same, tables[1], launches[-2][6]))


def test_a_backend_is_usable_where_a_launch_worked(launches: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(triton.gpus, "in_use", lambda: torch.device("cpu"))
    monkeypatch.setattr(triton, "why_unavailable", lambda: None)
    triton.why_not_on.cache_clear()
    assert triton.why_not_on("cuda") is None
    assert len(launches) == 2  # the sweep, and the sums
    triton.why_not_on.cache_clear()


def test_python_runs_beside_a_launch_for_hooks_that_somebody_added(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = knobs.runtime.launch_exit_hook
    call, called = type(chain).__call__, []
    monkeypatch.setattr(type(chain), "__call__", lambda *args: (called.append(args[0]), call(*args)))
    triton.accumulate_(ones(5), ones(5), HALF)
    assert called == []
    seen: list[Any] = []
    chain.add(seen.append)
    try:
        triton.accumulate_(ones(5), ones(5), HALF)
    finally:
        chain.remove(seen.append)
    assert len(seen) == len(called) == 2  # the sweep, and the sums


class WithoutLaunch:
    """A launcher whose launch has another name."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self._run = no_gpu.Launcher(src, metadata)

    def __call__(self, *args: Any) -> None:
        self._run(*args)


class LaunchOfAnother(WithoutLaunch):
    """A launcher that has a launch, and launches in another way."""

    def __init__(self, src: Any, metadata: Any) -> None:
        super().__init__(src, metadata)
        self.launch = self._run.launch

    def __call__(self, *args: Any) -> None:
        self._run.launch("gradalign.launch", args[:3], args[3], *args[9:], args[7:9])


@pytest.fixture
def recompiled() -> Any:
    """Nothing is compiled yet in this process, nor stays."""

    def forget() -> None:
        launch._compiled.clear()
        launch._tell.cache_clear()
        for kernel in (sweep, sum_chunks):
            kernel.device_caches.clear()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("recompiled")
@pytest.mark.parametrize("other", ["no launch", "no Python", "no hooks", "another compiled kernel"])
def test_triton_launches_where_its_launcher_is_another_one(
    launches: list[tuple], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: str
) -> None:
    caplog.set_level("INFO", logger="gradalign")
    if other == "no launch":
        monkeypatch.setattr(no_gpu.Driver, "launcher_cls", WithoutLaunch)
    elif other == "no Python":
        monkeypatch.setattr(launch.copy, "copy", lambda launcher: None)  # TypeError
    elif other == "no hooks":
        monkeypatch.setattr(launch, "knobs", None)
    else:
        monkeypatch.setattr(sweep, "warmup", lambda *args, grid, **options: object())
    accs, grads = ones(5, 6), ones(5, 6)
    for _ in range(2):
        triton.accumulate_(accs, grads, HALF)
    assert len(launches) == 4  # each once: the sweep, and the sums
    assert [a._version for a in accs] == [2, 2]
    assert launches[0][6][0].tolist() == [a.data_ptr() for a in accs]
    (message,) = (record.getMessage() for record in caplog.records if "launched by Triton" in record.getMessage())
    assert "its launcher is another one" in message


@pytest.mark.usefixtures("recompiled")
def test_what_launches_by_itself_is_not_launched_again(launches: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_gpu.Driver, "launcher_cls", LaunchOfAnother)
    with pytest.raises(RuntimeError, match="expected LaunchOfAnother of Triton to call its launch; it did not"):
        triton.accumulate_(ones(5), ones(5), HALF)
    assert len(launches) == 1


def same(a: Any, b: Any) -> bool:
    return a is b


def test_new_gradients_renew_their_addresses_only(launches: list[tuple]) -> None:
    accs = ones(5, 6)
    triton.accumulate_(accs, ones(5, 6), HALF)
    grads = ones(5, 6)
    triton.accumulate_(accs, grads, HALF)
    (old, _), (new, addresses) = launches[0][6], launches[2][6]
    assert new is old
    assert addresses.tolist() == [g.data_ptr() for g in grads]
    assert launches[2][2] is launches[0][2]


def test_a_tensor_whose_memory_moved_is_found(launches: list[tuple]) -> None:
    xs = ones(5, 6)
    for _ in range(2):
        triton.norm_dot(xs)
    xs[1].data = torch.zeros(6)
    triton.norm_dot(xs)
    assert launches[-2][6][0].tolist() == [x.data_ptr() for x in xs]


def test_another_tensor_at_the_same_address_is_told_apart() -> None:
    xs = ones(8, 8)
    first = entry_of(xs)
    assert entry_of(xs) == first
    xs[1] = xs[1].view(torch.bfloat16)  # perhaps with the same identity
    gc.collect()
    second = entry_of(xs)
    assert second.table is first.table
    assert second.format is not first.format
    assert second.format.dtypes == (torch.float32, torch.bfloat16)


def test_views_of_one_memory_are_told_apart() -> None:
    x = torch.ones(4, 6)
    formats = [entry_of([view]).format for view in (x, x.t(), x[:, ::2], x)]
    assert formats[0] is formats[3]
    assert len(set(formats)) == 3


IN_PLACE = {
    "t_": lambda t: t.t_(),
    "resize_": lambda t: t.resize_(2, 6),
    "as_strided_": lambda t: t.as_strided_((4, 3), (6, 2)),
    "data": lambda t: setattr(t, "data", t.data.view(torch.bfloat16)),
}


@pytest.mark.parametrize("how", IN_PLACE)
def test_a_tensor_that_changes_without_moving_is_found(launches: list[tuple], how: str) -> None:
    xs = [torch.ones(5), torch.ones(4, 6)]
    for _ in range(2):
        triton.norm_dot(xs)
    IN_PLACE[how](xs[1])
    triton.norm_dot(xs)
    assert entry_of(xs).format.sizes == (5, xs[1].numel())
    assert entry_of(xs).format.dtypes[1] == xs[1].dtype


def test_permuted_tensors_that_agree_are_not_copied(launches: list[tuple]) -> None:
    params, backups, xs = ([torch.ones(4, 6).t()] for _ in range(3))
    triton.perturb_(params, backups, xs, HALF)
    assert [c.tolist() for c in launches[0][6]] == [[t[0].data_ptr()] for t in (params, backups, xs)]
    triton.perturb_(params, backups, [torch.ones(6, 4)], HALF)
    copied = launches[3][6]  # after the sums of no regular tensor
    assert copied[0].tolist() != [params[0].data_ptr()]


def test_a_stochastic_step_takes_elements_in_row_major_order(launches: list[tuple]) -> None:
    params, grads = ([torch.ones(4, 6, dtype=torch.bfloat16).t()] for _ in range(2))
    scalars = (torch.tensor(1.0),) * 3
    signatures.call(triton, "sgd_step_", params, grads, [], [], [torch.zeros(())], *scalars)
    signatures.call(triton, "sgd_step_", params, grads, [], [], [torch.zeros(())], *scalars, seed=torch.tensor(1))
    plain, stochastic = (launches[k][6][0].tolist() for k in (1, 3))
    assert plain == [params[0].data_ptr()]
    assert stochastic != plain


def test_an_interrupt_finds_a_launch_and_its_version_bumps_together(launches: list[tuple]) -> None:
    params, backups = ones(5, 6), ones(5, 6)
    triton.restore_(params, backups)
    seen = set()
    for at in range(1, 2000):
        launches.clear()
        versions = [p._version for p in params]
        finished = interrupted_call(at, lambda: triton.restore_(params, backups))
        bumped = [p._version > v for p, v in zip(params, versions, strict=True)]
        assert bumped == [bool(launches)] * 2
        seen.add(bumped[0])
        if finished:
            break
    assert finished
    assert seen == {False, True}


def interrupted_call(at: int, call: Any) -> bool:
    """Run it with a KeyboardInterrupt before its bytecode number `at`; whether it had fewer."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        if event == "opcode":
            count += 1
            if count == at:
                raise KeyboardInterrupt
        return trace

    sys._getframe().f_trace_opcodes = True  # without it Python 3.12 sends no bytecodes before the second time
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(None)
    return True


def test_an_int_among_the_numbers_is_not_compiled_in(launches: list[tuple]) -> None:
    """Triton compiles the value of an int 1 in, and the next optimizer's number would not be looked at."""
    for dampening in (0, 0.5):
        params, grads, buffers = ones(5), ones(5), ones(5)
        step = [torch.zeros(())]
        scalars = (torch.tensor(1.0), torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.0))
        signatures.call(
            triton, "sgd_step_", params, grads, buffers, [], step, *scalars, momentum=0.9, dampening=dampening
        )
        floats = launches[-1][9]
        assert floats == (0.9, 1 - dampening)
        assert set(map(type, floats)) == {float}


def test_what_is_staged_during_a_capture_was_pinned_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(tables, "_pinned", lambda num: made.append(num) or torch.zeros(num, dtype=torch.int64))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pytest.fail("pinned during a capture"))
    reserve = tables.Reserve()
    reserve.fill()
    parts = [reserve.take(torch.arange(6).view(2, 3) + i) for i in range(3)]
    assert [part.tolist() for part in parts] == [[[i, i + 1, i + 2], [i + 3, i + 4, i + 5]] for i in range(3)]
    reserve.fill()
    assert made == [tables.RESERVED]
    reserve.take(torch.zeros(tables.RESERVED // 2 + 1, dtype=torch.int64))
    reserve.fill()
    assert made == [tables.RESERVED] * 2
