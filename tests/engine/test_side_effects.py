"""A teacher that a loss_fn moves is refused, however it is written."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradalign import GradAlign
from gradalign.engine import side_effects

BEGIN = "expected frozen parameters to be left alone"


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 4, generator=generator) for _ in range(4)]


def assigned(p, q):
    p.data = p.data * 0.9 + q.data * 0.1


def in_place(p, q):
    p.data.mul_(0.9).add_(q.data, alpha=0.1)


def counted(p, q):
    p.mul_(0.9).add_(q.detach(), alpha=0.1)


def moving(student, teacher, move):
    def loss_fn(x):
        with torch.no_grad():
            for p, q in zip(teacher.parameters(), student.parameters(), strict=True):
                move(p, q)
            target = teacher(x)
        return (student(x) - target - 1).square().mean()

    return loss_fn


def trained(student, teacher, move, *, steps=6, **options):
    """As many steps as it takes to be refused."""
    aligner = GradAlign([student, teacher], 0.03, objective="variance", **options)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(steps):
        aligner.backward(moving(student, teacher, move), data())
        optimizer.step()
        student.zero_grad()
        yield aligner.num_steps


@pytest.mark.parametrize("move", [assigned, in_place, counted])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_teacher_that_begins_as_its_student_is_refused_in_the_second_step_at_the_latest(move, frozen):
    student = mlp()
    teacher = copy.deepcopy(student).requires_grad_(not frozen)
    message = BEGIN if frozen else "expected parameters without a gradient to be left alone"
    done = []
    with pytest.raises(RuntimeError, match=rf"{message}.*got a write into 0\.weight.*momentum encoder"):
        done.extend(trained(student, teacher, move))
    assert len(done) <= 1
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("move", [assigned, in_place])
@pytest.mark.parametrize("begins", [1, 2, 3, 5])
def test_a_teacher_that_is_moved_later_is_refused_at_the_next_power_of_two(move, begins):
    student, teacher, done = mlp(), mlp().requires_grad_(False), []
    with torch.no_grad():
        teacher[0].weight.mul_(2)

    def late(p, q):
        if len(done) >= begins:
            move(p, q)

    with pytest.raises(RuntimeError, match=BEGIN):
        done.extend(trained(student, teacher, late, steps=10))
    assert len(done) == {1: 1, 2: 2, 3: 4, 5: 8}[begins]


def test_without_check_replay_no_value_is_read():
    student, teacher = mlp(), mlp().requires_grad_(False)
    with torch.no_grad():
        teacher[0].weight.mul_(2)
    assert list(trained(student, teacher, in_place, check_replay=False)) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(RuntimeError, match=BEGIN):
        list(trained(student, teacher, counted, check_replay=False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (3,), (5, 7)])
def test_one_element_of_any_dtype_and_shape_is_seen(dtype, shape):
    extra, model = nn.Module(), mlp()
    extra.scale = nn.Parameter(torch.ones(2, *shape, dtype=dtype).transpose(0, -1)[..., 0], requires_grad=False)
    scale = extra.scale

    def loss_fn(x):
        scale.data.view(-1 if scale.is_contiguous() else scale.shape)[..., -1:].mul_(1.125)
        return model(x).square().mean()

    with pytest.raises(RuntimeError, match="got a write into scale"):
        GradAlign([model, extra], 0.03).backward(loss_fn, data())


def test_a_trained_parameter_that_its_forward_writes_is_no_fault():
    class Initialised(nn.Linear):
        ready = False

        def forward(self, x):
            if not self.ready:
                self.weight.data = self.weight.data * 2
                self.bias.data.fill_(0.5)
                self.ready = True
            return super().forward(x)

    model, unused = nn.Sequential(nn.Linear(4, 8), Initialised(8, 3)), nn.Linear(2, 2)
    aligner = GradAlign([model, unused], 0.03)
    aligner.backward(lambda x: model(x).square().mean(), data())
    assert aligner.num_steps == 1
    assert unused.weight.grad is None


@pytest.mark.parametrize("unused", [False, True])
def test_later_steps_read_values_only_where_a_parameter_gets_no_gradient(unused, monkeypatch):
    model = nn.ModuleList([mlp(), nn.Linear(2, 2)] if unused else [mlp()])
    aligner, read = GradAlign(model, 0.03), []
    monkeypatch.setattr(side_effects, "_sums", lambda tensors: read.append(len(tensors)) or [None] * len(tensors))
    for _ in range(5):
        aligner.backward(lambda x: model[0](x).square().mean(), data())
        model.zero_grad()
    assert read == ([6, 6] + 3 * [2, 2] if unused else [4, 4])


def test_memory_that_is_given_back_or_filled_again_is_no_fault():
    base, head = nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 3)
    kept = base.weight.data.clone()

    def offloading(x):
        base.weight.data = kept.clone()
        hidden = base(x)
        base.weight.data = torch.empty(0)
        return head(hidden).square().mean()

    aligner = GradAlign([base, head], 0.03)
    aligner.backward(offloading, data())
    assert aligner.num_steps == 1
