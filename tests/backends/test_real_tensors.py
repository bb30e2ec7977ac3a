"""Tensors without memory of their own, or whose memory is not their value: resolved or refused, never read as they are."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gradalign import ops
from gradalign.backends import dispatch, native, op_validation
from gradalign.optim import LAMB, SGD, AdamW

SCALE = torch.tensor(0.5)
REFUSED = "negation input"  # in the words of torch, which resolves what is read and refuses what is written


@pytest.fixture(params=["reference", "native"])
def backend(request):
    module = dispatch.load(request.param)
    if module.why_unavailable() is not None:
        pytest.skip(f"{request.param}: {module.why_unavailable()}")
    return module


@pytest.fixture
def built():
    if native.why_unavailable() is not None:
        pytest.skip(native.why_unavailable())


def negative(values):
    """A view with these values whose memory holds them with the other sign."""
    view = torch.complex(torch.zeros(len(values)), -torch.tensor(values)).conj().imag
    assert view.is_neg()
    return view


def zeros(n):
    return torch._efficientzerotensor(n)


def ones(n=3):
    return torch.ones(n)


def refusal(call):
    """The words of the error that the call raises; None where it returns."""
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


def test_norm_dot_of_negative_views(backend):
    for run in (backend.norm_dot, ops.norm_dot):
        assert run([ones()], [negative([-1.0, -1.0, -1.0])]).tolist() == [3, -3, 3]
        assert run([negative([-1.0, -2.0])], [ones(2)]).tolist() == [5, -3, 2]
        assert run([ones(1), negative([-2.0])], [ones(1), negative([3.0])]).tolist() == [5, -5, 10]


def test_perturb_along_negative_views(backend):
    for run in (backend.perturb_, ops.perturb_):
        p, backup = [torch.zeros(2)], [torch.ones(2)]
        run(p, backup, [torch.tensor([-1.0, 1.0])], SCALE, [negative([2.0, -4.0])], SCALE)
        assert p[0].tolist() == [0.5, -1.5]
        assert backup[0].tolist() == [0, 0]


def test_a_negative_view_is_written_or_refused(backend):
    for run in (backend.accumulate_, ops.accumulate_):
        acc, other = negative([-1.0, 2.0]), ones(2)
        words = refusal(partial(run, [other, acc], [ones(2), ones(2)], SCALE))
        values = (other.tolist(), acc.tolist())
        assert values == (([1.5, 1.5], [-0.5, 2.5]) if words is None else ([1, 1], [-1, 2]))
        assert words is None or REFUSED in words


@pytest.mark.parametrize("cls", [AdamW, SGD, LAMB])
def test_a_step_along_a_negative_gradient_is_right_or_refused(cls, backend):
    plain, viewed = (torch.ones(2, requires_grad=True) for _ in range(2))
    plain.grad, viewed.grad = torch.tensor([-1.0, 2.0]), negative([-1.0, 2.0])
    cls([plain], lr=0.1, backend=backend.NAME).step()
    optimizer = cls([viewed], lr=0.1, backend=backend.NAME)
    words = refusal(optimizer.step)
    if words is not None:
        assert REFUSED in words
        assert viewed.tolist() == [1, 1]
        viewed.grad = viewed.grad.resolve_neg()
        optimizer.step()
    assert torch.equal(plain, viewed)
    assert viewed[0] > 1 > viewed[1]


@pytest.mark.parametrize("make", [lambda: negative([1.0, 2.0, 3.0]), lambda: zeros(3)])
def test_kernels_that_read_addresses_refuse_what_memory_does_not_hold(make):
    lists = [ones()], [make()]
    for args in (lists, (lists[0], SCALE, make()), ([ones(), make()],)):
        with pytest.raises(ValueError, match=r"op_: expected tensors whose memory holds their values; .*resolve_neg"):
            op_validation.values_in_memory("op_", args)
    op_validation.values_in_memory("op_", ([ones()], None, SCALE, 1.0, [make().clone()]))


def test_tensors_that_stand_for_zeros(backend):
    for run in (backend.norm_dot, ops.norm_dot):
        assert run([zeros(3)], [ones()]).tolist() == [0, 0, 3]
        assert run([zeros(3)]).tolist() == [0, 0, 0]
        words = refusal(partial(run, [ones()], [zeros(3)]))
        assert run([ones()], [zeros(3)]).tolist() == [3, 0, 0] if words is None else "tensors that have memory" in words


def test_a_tensor_that_stands_for_zeros_is_not_written(backend):
    first = ones()
    with pytest.raises((RuntimeError, ValueError), match=r"[Zz]ero[Tt]ensor|have memory"):
        backend.accumulate_([first, zeros(3)], [ones(), ones()], SCALE)


def test_fakes_among_real_tensors_are_refused(built):
    with FakeTensorMode() as mode:
        fake = torch.ones(3)
    for call in (
        lambda: native.norm_dot([ones()], [fake]),
        lambda: native.norm_dot([fake], [ones()]),
        lambda: native.perturb_([ones()], [ones()], [ones()], SCALE, [fake], SCALE),
        lambda: native.accumulate_([ones()], [fake], SCALE),
        lambda: native.accumulate_([ones()], [ones()], mode.from_tensor(SCALE)),
    ):
        with pytest.raises((RuntimeError, ValueError, AssertionError)):
            call()


@pytest.mark.parametrize("name", ["norm_dot", "perturb_", "restore_", "swap_", "accumulate_", "combine_"])
def test_every_op_has_a_fake(name, built):
    args = {
        "norm_dot": lambda x: ([x], [x]),
        "perturb_": lambda x: ([x], [x], [x], SCALE.clone(), [x], SCALE.clone()),
        "restore_": lambda x: ([x], [x]),
        "swap_": lambda x: ([x], [x]),
        "accumulate_": lambda x: ([x], [x], SCALE.clone()),
        "combine_": lambda x: ([x], [x], [x], SCALE.clone(), SCALE.clone()),
    }[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = getattr(native, name)(*args(torch.ones(3)))
    expected = {"norm_dot": 3, "perturb_": 3, "accumulate_": 2, "combine_": 1}.get(name)
    assert (None if result is None else tuple(result.shape)) == (None if expected is None else (expected,))
    assert result is None or result.dtype == torch.float64


@pytest.mark.parametrize("cls", [AdamW, SGD, LAMB])
def test_an_optimizer_steps_on_fakes(cls, backend):
    with FakeTensorMode():
        p = torch.ones(3, requires_grad=True)
        p.grad = torch.ones(3)
        optimizer = cls([p], backend=backend.NAME, clear="zero", max_grad_norm=1.0)
        optimizer.step()
        assert optimizer.grad_norm.dtype == torch.float64


@pytest.mark.parametrize("cls", [AdamW, SGD, LAMB])
def test_a_real_optimizer_under_the_mode_of_fakes_is_refused(cls, built):
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = cls([p], backend="native")
    with FakeTensorMode(), pytest.raises(Exception, match=r"[Ff]ake"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3))


def test_tensors_of_meta_among_others_are_refused(built):
    with pytest.raises(ValueError, match="expected tensors of one device; got"):
        native.restore_([ones()], [torch.ones(3, device="meta")])


EXPANDED = {
    "perturb_ params": lambda m, x: m.perturb_([x], [torch.zeros(4)], [torch.ones(4)], SCALE),
    "perturb_ backups": lambda m, x: m.perturb_([torch.zeros(4)], [x], [torch.ones(4)], SCALE),
    "restore_": lambda m, x: m.restore_([x], [torch.ones(4)]),
    "swap_ params": lambda m, x: m.swap_([x], [torch.ones(4)]),
    "swap_ backups": lambda m, x: m.swap_([torch.ones(4)], [x]),
    "accumulate_": lambda m, x: m.accumulate_([x], [torch.ones(4)], SCALE),
    "combine_": lambda m, x: m.combine_([x], [torch.ones(4)], [torch.ones(4)], SCALE, SCALE),
}


@pytest.mark.parametrize("case", EXPANDED)
def test_expanded_tensors_are_read_and_not_written(case, backend):
    x = torch.zeros(1).expand(4)
    with pytest.raises((ValueError, RuntimeError), match=r"got an expanded one; clone it first|single memory location"):
        EXPANDED[case](backend, x)
    assert x.eq(0).all()
    assert backend.norm_dot([torch.ones(1).expand(4)])[0] == 4
