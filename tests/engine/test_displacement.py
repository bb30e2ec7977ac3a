"""Parameters at theta + d, and their way back."""

from __future__ import annotations

import pytest
import torch
from support.gradients import assert_close, grads
from torch import nn

from gradalign import GradAlign
from gradalign.engine.displacement import Displacement
from gradalign.engine.space import ParamSpace


def test_autocast_around_the_call_does_not_cache_undisplaced_weights():
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    batches = list(torch.randn(4, 16, 8))
    found = []
    for where in ("inside", "outside"):
        model.zero_grad()
        aligner = GradAlign(model, 10.0, radius=0.5)

        def loss_fn(x, where=where):
            with torch.autocast("cpu", torch.bfloat16, enabled=True, cache_enabled=where == "outside"):
                return model(x).float().square().mean()

        with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
            aligner.backward(loss_fn, batches)
        found.append(grads(model))
    assert_close(found[0], found[1], rtol=1e-6)


THETA = [[1.0, 2.0], [3.0], [4.0]]


@pytest.fixture(params=["apart", "pieces of one tensor"])
def space(request):
    tensors = [torch.tensor(values) for values in THETA]
    if request.param != "apart":
        tensors = torch.cat(tensors).split([2, 1, 1])
    params = [nn.Parameter(t) for t in tensors]
    return ParamSpace(params, params[:2], "reference")  # the third is not displaced


def values(tensors):
    return [t.tolist() for t in tensors]


def displace(displacement):
    """theta + d with d = 2 x."""
    x = [torch.tensor([1.0, 1.0]), torch.tensor([3.0]), torch.tensor([5.0])]
    return displacement.displace(x, torch.tensor(2.0, dtype=torch.float64))


DISPLACED = [[3.0, 4.0], [9.0], [4.0]]


def test_the_measured_parameters_are_displaced_and_come_back(space):
    displacement = Displacement(space)
    assert displace(displacement).tolist() == [4 + 4 + 36] * 3
    assert (displacement.active, int(displacement.num_moved())) == (True, 3)
    assert values(space.params) == DISPLACED
    displacement.restore()
    assert (displacement.active, values(space.params)) == (False, THETA)


def test_a_parameter_that_neither_vector_reaches_stays(space):
    displacement = Displacement(space)
    displacement.displace([None, torch.tensor([1.0]), None], space.scalar(1.0))
    assert values(space.params) == [[1.0, 2.0], [4.0], [4.0]]


@pytest.mark.parametrize("space", ["apart"], indirect=True)
def test_nothing_is_noted_on_a_parameter_that_stays(space):
    """Whoever holds a graph with it, or a float32 master of it, would take it for written."""
    before = [p._version for p in space.params]
    displacement = Displacement(space)
    displacement.displace([None, torch.tensor([1.0]), None], space.scalar(1.0))
    assert [p._version == v for p, v in zip(space.params, before, strict=True)] == [True, False, True]


def test_reflection_displaces_to_the_other_side(space):
    displacement = Displacement(space)
    displace(displacement)
    displacement.reflect()
    assert values(space.params) == [[-1.0, 0.0], [-3.0], [4.0]]
    displacement.restore()
    assert values(space.params) == THETA


def test_stepping_out_and_in_again(space):
    displacement = Displacement(space)
    displace(displacement)
    displacement.step_out()
    assert (displacement.active, values(space.params)) == (False, THETA)
    displacement.step_in()
    assert (displacement.active, values(space.params)) == (True, DISPLACED)
    displacement.restore()
    assert values(space.params) == THETA


@pytest.mark.parametrize("way", ["displace", "step_out", "step_in"])
@pytest.mark.parametrize("num_written", [0, 1, 2])
def test_an_interrupt_between_two_parameters_is_undone(space, way, num_written, monkeypatch):
    displacement = Displacement(space)
    if way != "displace":
        displace(displacement)
    if way == "step_in":
        displacement.step_out()
    pieces = space.params[0].untyped_storage().data_ptr() == space.params[1].untyped_storage().data_ptr()
    swaps = {"step_out": "restore", "step_in": "restore"} if pieces else {}
    name = {"displace": "perturb", "step_out": "swap_out", "step_in": "swap_in", **swaps}[way]
    whole = getattr(space, name)

    def interrupted(backups, *args, **kwargs):
        written = list(range(num_written))
        if written:
            whole(backups, *args[:-1], written, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(space, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            displace(displacement) if way == "displace" else getattr(displacement, way)()
    displacement.restore()
    assert values(space.params) == THETA


def test_a_master_is_the_backup():
    """1 + 2^-9 is no bfloat16: theta is the rounding of the master, the displaced value that of master + d."""
    param = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.bfloat16))
    space = ParamSpace([param], None, "reference")
    master = torch.tensor([1.0 + 2**-9, 1.0])
    displacement = Displacement(space, [master])
    assert displacement.with_masters
    d = torch.tensor([2**-9 + 2**-12, 2**-9], dtype=torch.bfloat16)
    displacement.displace([d], space.scalar(1.0))
    assert param.tolist() == [1.0 + 2**-7, 1.0]
    assert int(displacement.num_moved()) == 1
    displacement.restore()
    assert (param.tolist(), master.tolist()) == ([1.0, 1.0], [1.0 + 2**-9, 1.0])


def test_displaced_parameters_are_displaced_anew_from_theta(space):
    displacement = Displacement(space)
    displacement.displace([torch.tensor([9.0, 9.0]), torch.tensor([9.0]), None], torch.tensor(1.0, dtype=torch.float64))
    backups = list(displacement._backups)
    assert displace(displacement).tolist() == [4 + 4 + 36] * 3
    assert values(space.params) == DISPLACED
    assert all(now is before for now, before in zip(displacement._backups, backups, strict=True))
    displacement.restore()
    assert values(space.params) == THETA


def test_other_parameters_are_displaced_after_the_way_back(space):
    displacement = Displacement(space)
    displacement.displace([None, torch.tensor([9.0]), None], torch.tensor(1.0, dtype=torch.float64))
    assert displace(displacement).tolist() == [4 + 4 + 36] * 3
    assert values(space.params) == DISPLACED
    displacement.restore()
    assert values(space.params) == THETA
