"""Lists of tensors as rows: every tensor is as it is now, and what is not simply memory is left to torch."""

from __future__ import annotations

import gc
import struct
import threading
import weakref

import pytest
import torch
from support.kernel_cases import copies
from torch.utils._python_dispatch import TorchDispatchMode

from gradalign.backends import native, rows

pytestmark = pytest.mark.skipif(
    native.why_unavailable() is not None or rows.reader() is None, reason="gradalign._C or the kernels are not there"
)

SCALE = torch.tensor(0.5)
N = native.LEAST_ROWS


def ones(n: int = N, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.ones(2, 3, dtype=dtype) for _ in range(n)]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call, whether its rows were read."""
    found, read = [], rows.read

    def recorded(lists):
        result = read(lists)
        found.append(result is not None)
        return result

    monkeypatch.setattr(rows, "read", recorded)
    return found


def test_a_row_is_what_the_tensor_is():
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool]
    tensors = [torch.ones(3, 5).to(dtype) for dtype in dtypes] + [
        torch.ones(4, 6).t(),
        torch.ones(4, 0, 2),
        torch.ones(()),
    ]
    read = bytes(rows.read((tuple(tensors), ())))
    assert (read[:8], read[-8:]) == (struct.pack("q", len(tensors)), struct.pack("q", 0))
    for t, row in zip(tensors, struct.iter_unpack("qqqqqibb??", read[8:-8]), strict=True):
        data, numel, ndim, _, _, device, memory, number, strided, flat = row
        assert (data, numel, ndim) == (t.data_ptr(), t.numel(), t.dim())
        assert (device, memory, number) == (-1, 1, dtypes.index(t.dtype))
        assert (strided, flat) == (True, t.is_contiguous())


CHANGES = {
    "data": lambda t: setattr(t, "data", torch.full((2, 3), 4.0)),
    "data of another dtype": lambda t: setattr(t, "data", torch.full((2, 3), 4.0, dtype=torch.float64)),
    "data, turned": lambda t: setattr(t, "data", torch.full((3, 2), 4.0).t()),
    "set_": lambda t: t.set_(torch.full((2, 3), 4.0)),
    "a storage that grows": lambda t: t.resize_(2, 3000).fill_(4).resize_(2, 3),
    "swap_tensors": lambda t: torch.utils.swap_tensors(t, torch.full((2, 3), 4.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_changed_in_place_is_found(reads, change):
    plain = ones()
    grads = ones()
    native.accumulate_(plain, grads, SCALE)
    memory = plain[3].data
    CHANGES[change](plain[3])
    native.accumulate_(plain, grads, SCALE)
    assert reads.count(False) == 0
    assert plain[3].eq(4.5).all()
    assert all(t.eq(2).all() for t in plain[:3] + plain[4:])
    if memory.data_ptr() != plain[3].data_ptr():
        assert memory.eq(1.5).all() or memory.numel() == 0 or change == "a storage that grows"


def test_a_tensor_that_changed_its_shape_is_refused():
    plain, grads = ones(), ones()
    plain[3].resize_(7).fill_(1)
    with pytest.raises(ValueError, match=r"expected grads\[3\] to have 7 elements; got 6"):
        native.accumulate_(plain, grads, SCALE)
    assert all(t.eq(1).all() for t in plain)
    assert {t._version for t in plain if t is not plain[3]} == {0}


def test_a_tensor_turned_in_place_is_read_in_its_new_order():
    plain, grads = [torch.ones(2, 2) for _ in range(N)], [torch.tensor([[0.0, 1.0], [2.0, 3.0]]) for _ in range(N)]
    native.accumulate_(plain, grads, SCALE)
    plain[3].t_()
    native.accumulate_(plain, grads, SCALE)
    assert plain[3].tolist() == [[1, 2.5], [2.5, 4]]
    assert plain[2].tolist() == [[1, 2], [3, 4]]


def test_a_list_whose_tensors_were_replaced_is_read_anew():
    accs, old = ones(), ones()
    native.accumulate_(accs, old, SCALE)
    gone = weakref.ref(old[3])
    old[3] = torch.full((2, 3), 7.0)
    gc.collect()
    assert gone() is None  # nothing of an earlier call holds it
    native.accumulate_(accs, old, SCALE)
    assert accs[3].eq(1 + 0.5 + 3.5).all()


def test_a_negative_view_is_left_to_torch_wherever_it_comes_from(reads):
    """Contiguous or not, in a list that is read or in one that is written, as it came or turned into one in place."""
    views = {
        "contiguous": lambda: torch._neg_view(torch.full((2, 3), -2.0)),
        "of a conjugate": lambda: torch.complex(torch.zeros(2, 3), torch.full((2, 3), -2.0)).conj().imag,
    }
    for view in views.values():
        accs, plain = ones(), ones()
        plain[5] = view()
        native.accumulate_(accs, plain, SCALE)
        assert accs[5].eq(2).all()
        grads = ones()
        native.accumulate_(accs, grads, SCALE)
        grads[5].data = view()
        native.accumulate_(accs, grads, SCALE)
        assert accs[5].eq(3.5).all()
        before = copies(accs)
        accs[5] = view()
        before[5] = accs[5].clone()
        with pytest.raises(RuntimeError, match="negation input"):
            native.accumulate_(accs, ones(), SCALE)
        assert all(map(torch.equal, accs, before))
    assert reads.count(True) == len(views)  # of the call before there was a view


LEFT_TO_TORCH = {
    "a subclass": lambda: torch.ones(2, 3).as_subclass(type("Sub", (torch.Tensor,), {})),
    "integers": lambda: torch.ones(2, 3, dtype=torch.int8),
    "meta": lambda: torch.ones(2, 3, device="meta"),
    "sparse": lambda: torch.ones(2, 3).to_sparse(),
    "zeros": lambda: torch._efficientzerotensor(2, 3),
    "no storage": lambda: (lambda t: (t.untyped_storage().resize_(0), t)[1])(torch.ones(2, 3)),
    "no tensor": lambda: None,
}


@pytest.mark.parametrize("kind", LEFT_TO_TORCH)
def test_what_is_left_to_torch(kind):
    tensors = ones()
    tensors[3] = LEFT_TO_TORCH[kind]()
    assert rows.read((tuple(tensors),)) is None
    assert rows.read((tuple(ones()),)) is not None


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen = func.name()
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_the_lists():
    with Watching() as mode:
        native.norm_dot(ones())
    assert mode.seen == "gradalign_native::norm_dot"


def test_a_function_transform_sees_the_lists():
    def total(x):
        return native.norm_dot([x] * N)[0]

    with pytest.raises(RuntimeError):
        torch.func.vmap(total)(torch.ones(3, 2))


def test_a_tracer_sees_the_lists():
    traced = torch.jit.trace(lambda x: native.norm_dot([x] * N), torch.ones(3))
    assert traced(torch.full((3,), 2.0))[0] == 12 * N


def test_rows_and_lists_give_the_same_bits(monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def results():
        generator.manual_seed(0)
        p, b, x, y = ([torch.randn(7, 5, generator=generator) for _ in range(N)] for _ in range(4))
        p[2], x[4] = p[2].t().contiguous().t(), x[4].expand(7, 5)
        sums = [
            native.perturb_(p, b, x, SCALE, y, SCALE),
            native.accumulate_(b, y, SCALE),
            native.combine_(y, b, p, SCALE, SCALE),
            native.norm_dot(p, y),
        ]
        native.swap_(p, b)
        native.restore_(b, y)
        return [*p, *b, *x, *y, *sums]

    read = results()
    monkeypatch.setattr(rows, "read", lambda lists: None)
    assert all(map(torch.equal, read, results()))


def test_lists_on_several_devices_and_short_lists_go_through_torch(reads):
    native.norm_dot(ones(native.LEAST_ROWS - 1))
    assert reads == []
    assert rows.read((tuple(ones()), (torch.ones(2, device="meta"),))) is None


def test_rows_that_are_none_are_refused():
    op = torch.ops.gradalign_native.norm_dot.rows
    for numbers in ([], [0], [3, 0], [-1, 0], [1 << 60]):
        with pytest.raises(ValueError, match="expected rows for every list"):
            op(torch.ones(1), torch.tensor(numbers, dtype=torch.int64))
    with pytest.raises(ValueError, match="vector of int64"):
        op(torch.ones(1), torch.zeros(4))


def test_a_list_that_another_thread_empties_while_the_kernel_runs():
    accs, grads = [torch.ones(100_000) for _ in range(N)], [torch.ones(100_000) for _ in range(N)]
    kept, stop = list(accs), threading.Event()

    def empty_and_fill():
        while not stop.is_set():
            grads[:] = [torch.ones(100_000) for _ in range(N)]

    thread = threading.Thread(target=empty_and_fill)
    thread.start()
    try:
        for _ in range(20):
            native.accumulate_(accs, grads, SCALE)
    finally:
        stop.set()
        thread.join()
    assert all(t.eq(11).all() for t in kept)
