"""What only the native backend promises: interrupts, versions, threads, instruction sets, refusals."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from support.fresh_process import fresh_python
from support.kernel_cases import DTYPES, copies, tensors
from support.native_digest import results_digest

from gradalign.backends import native

pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason=f"native: {native.why_unavailable()}")

SCALE = torch.tensor(0.37, dtype=torch.float64)


def versions(ts):
    return [t._version for t in ts]


class Interrupt(BaseException):
    pass


def interrupt_after(count: int):
    """A trace function that raises at the count-th event in native.py: a call, a line, a bytecode or a return."""
    seen = 0

    def trace(frame, event, arg):
        nonlocal seen
        if frame.f_code.co_filename != native.__file__:
            return None
        frame.f_trace_opcodes = True
        seen += 1
        if seen == count:
            raise Interrupt
        return trace

    return trace


@pytest.mark.parametrize("length", [2, native.LEAST_ROWS])
def test_an_interrupt_anywhere_leaves_versions_that_tell_what_was_written(length):
    for count in range(1, 1000):
        params, xs, backups = ([make(5 + i) for i in range(length)] for make in (torch.randn, torch.ones, torch.zeros))
        theta, before = copies(params), versions(params)
        sys._getframe().f_trace_opcodes = True  # without it Python 3.12 sends no bytecodes before the second time
        sys.settrace(interrupt_after(count))
        try:
            native.perturb_(params, backups, xs, SCALE)
        except Interrupt:
            finished = False
        else:
            finished = True
        finally:
            sys.settrace(None)
        for p, b, t, version in zip(params, backups, theta, before, strict=True):
            if p._version == version:
                assert torch.equal(p, t)
            else:
                assert torch.equal(b, t)
                assert not torch.equal(p, t)
        if finished:
            break
    assert finished
    assert count > 20  # the trace saw the bytecodes


def test_mutated_tensors_get_a_new_version_and_no_others_do():
    params, backups, xs, ys = (tensors(torch.float32, "contiguous", seed) for seed in range(4))
    groups = {"params": params, "backups": backups, "xs": xs, "ys": ys}

    def changed_by(op, *args) -> set[str]:
        before = {name: versions(group) for name, group in groups.items()}
        op(*args)
        return {name for name, group in groups.items() if versions(group) == [v + 1 for v in before[name]]}

    assert changed_by(native.norm_dot, xs, ys) == set()
    assert changed_by(native.perturb_, params, backups, xs, SCALE) == {"params", "backups"}
    assert changed_by(native.perturb_, params, backups, xs, SCALE, None, None, True) == {"params"}
    assert changed_by(native.restore_, params, backups) == {"params"}
    assert changed_by(native.swap_, params, backups) == {"params", "backups"}
    assert changed_by(native.accumulate_, params, xs, SCALE) == {"params"}
    assert changed_by(native.combine_, params, xs, ys, SCALE, SCALE) == {"params"}


def test_autograd_notices_a_mutation():
    weight = torch.randn(3, requires_grad=True)
    loss = (weight * weight).sum()
    with torch.no_grad():
        native.perturb_([weight], [torch.empty(3)], [torch.ones(3)], SCALE)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([torch.zeros(3)], []), r"expected backups to have 2 tensors; got 1"),
        (([torch.zeros(3)], [torch.zeros(4)]), r"expected backups\[1\] to have 3 elements; got 4"),
        (
            ([torch.zeros(3)], [torch.zeros(3, dtype=torch.int32)]),
            r"expected tensors of float32, float64, bfloat16 or float16",
        ),
        (([torch.zeros(3)], [torch.zeros(3, device="meta")]), r"swap_: expected tensors of one device; got"),
    ],
    ids=["length", "shape", "dtype", "device"],
)
def test_refusals_come_before_any_write(args, message):
    params, backups = args
    first, spare = torch.ones(3), torch.full((3,), 2.0)
    with pytest.raises((ValueError, NotImplementedError), match=message):
        native.swap_([first, *params], [spare, *backups])
    assert first.eq(1).all()
    assert spare.eq(2).all()
    assert first._version == 0


def test_scalars_must_be_single_numbers():
    with pytest.raises(ValueError, match="expected scale to be a 0-dim tensor on the CPU"):
        native.accumulate_([torch.zeros(2)], [torch.ones(2)], torch.ones(2))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64], ids=str)
def test_scalars_may_have_any_dtype(dtype):
    acc = [torch.zeros(2)]
    native.accumulate_(acc, [torch.ones(2)], torch.tensor(3, dtype=dtype))
    assert acc[0].tolist() == [3, 3]


def test_sums_are_the_same_for_every_number_of_threads():
    xs, ys = (
        tensors(torch.float32, "contiguous", 1, ((300_001,), (7,), (70_000,))),
        tensors(torch.float32, "contiguous", 2),
    )
    threads = torch.get_num_threads()
    try:
        sums = []
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            sums.append((native.norm_dot(xs).tolist(), native.norm_dot(ys, ys).tolist()))
    finally:
        torch.set_num_threads(threads)
    assert all(s == sums[0] for s in sums)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_writes_the_same_bits(isa):
    code = f"from support import native_digest as n; print(n.native.cpu_isa(), n.results_digest({isa!r}))"
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "GRADALIGN_CPU_ISA": isa, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    run = fresh_python("-c", code, env=environment)
    if "GRADALIGN_CPU_ISA: expected" in run.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert run.stdout.split() == [isa, results_digest(isa)]


def test_an_empty_instruction_set_is_none_named():
    code = "from gradalign.backends import native; print(native.cpu_isa())"
    found = []
    for environment in ({"GRADALIGN_CPU_ISA": ""}, {}):
        unset = {name: value for name, value in os.environ.items() if name != "GRADALIGN_CPU_ISA"}
        run = fresh_python("-c", code, env={**unset, **environment})
        assert run.returncode == 0, run.stderr
        found.append(run.stdout)
    assert found[0] == found[1]


def test_a_processor_that_lacks_what_the_system_says_leaves_the_choice_to_others(monkeypatch):
    if native.why_unavailable() is not None:
        pytest.skip("no C++ compiler")

    def refuse():
        raise RuntimeError(
            "GRADALIGN_CPU_ISA: expected a CPU with the instruction set that these kernels were compiled for"
        )

    monkeypatch.delenv("GRADALIGN_CPU_ISA", raising=False)
    monkeypatch.setattr(getattr(torch.ops, native.NAMESPACE), "cpu_isa", refuse)
    assert "expected a CPU with the instruction set" in native._why_not_chosen()
    monkeypatch.setenv("GRADALIGN_CPU_ISA", "portable")  # refused by the kernel, if at all
    assert native._why_not_chosen() is None
