"""What a step tells: the gradient noise scale against a simulation whose answer is known, and the alignment of tasks."""

from __future__ import annotations

import pytest
import torch
from support import oracle
from support.networks import Counting, make
from torch import nn

import gradalign
from gradalign.engine.sketch import WIDTH, cosines
from gradalign.estimators import LeaveOneOut, Prefix, Split
from gradalign.telemetry import AlignmentStats, RunningSum, logs, plot_tasks

# Elements, rows of a micro-batch, micro-batches of a step, steps.
N, ROWS, K, STEPS = 12, 4, 6, 400


@pytest.mark.parametrize("estimator", ["split", "prefix"])
@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_both_parts_are_unbiased(estimator, weight):
    """Loss theta . x with x ~ N(mu, sigma^2): g_i is the mean of the rows, E g = mu, tr Cov g_i = N sigma^2 / ROWS."""
    generator = torch.Generator().manual_seed(3)
    mean, sigma = torch.linspace(-1, 1, N, dtype=torch.float64), 1.5
    model = nn.Linear(N, 1, bias=False).double()
    aligner = gradalign.GradAlign(model, weight, estimator=estimator, telemetry=True)
    numerators, denominators = [], []
    for _ in range(STEPS):
        x = mean + sigma * torch.randn(K, ROWS, N, generator=generator, dtype=torch.float64)
        aligner.backward(lambda rows: model(rows).mean(), list(x))
        model.zero_grad()
        numerators.append(float(aligner.stats.noise_numerator))
        denominators.append(float(aligner.stats.noise_denominator))
    for values, expected in ((numerators, N * sigma**2 / ROWS), (denominators, float(mean @ mean))):
        values = torch.tensor(values)
        standard_error = float(values.std()) / STEPS**0.5
        assert abs(float(values.mean()) - expected) < 3.5 * standard_error
        assert standard_error < 0.042 * expected


ALL = [(i, j) for i in range(5) for j in range(i)]
PROBES = [(i, j) for i in (3, 4) for j in range(i)]
TWO = {"estimator": Split(0.4)}


@pytest.mark.parametrize(
    ("options", "pairs", "noise"),
    [
        ({"objective": "variance", **TWO}, PROBES, False),
        ({"normalize": "gradient", **TWO}, PROBES, False),
        ({"objective": "cosine", **TWO}, ALL, True),
        ({"objective": "cosine", "estimator": Split(0.1)}, ALL, True),
        ({"estimator": "prefix"}, ALL, True),
        ({"estimator": Prefix(block=2)}, [(i, j) for i in range(5) for j in range(i // 2 * 2)], False),
        ({"estimator": "symmetric"}, [(i, j) for i in (3, 4) for j in range(3)], False),
        ({"estimator": "leave_one_out"}, ALL, True),
        ({"estimator": "exact"}, ALL, True),
        ({"estimator": LeaveOneOut(gradients="recompute")}, [], False),
        ({"estimator": LeaveOneOut(gradients="recompute"), "objective": "variance"}, [], False),
        ({"estimator": LeaveOneOut(gradients="recompute"), "objective": "cosine"}, ALL, True),
        ({"estimator": LeaveOneOut(gradients="recompute"), "telemetry": True}, ALL, True),
    ],
    ids=str,
)
def test_dot_is_the_mean_over_these_pairs(options, pairs, noise):
    model, loss_fn, batches = make(Counting, k=5)
    g = oracle.gradients(model, loss_fn, batches)[1]
    model.count.zero_()
    aligner = gradalign.GradAlign(model, 0.1, check_replay=False, **options)
    aligner.backward(loss_fn, batches)
    if pairs:
        expected = sum(float(g[i] @ g[j]) for i, j in pairs) / len(pairs)
        assert float(aligner.stats.dot) == pytest.approx(expected, rel=1e-9)
    else:
        assert aligner.stats.dot is None
    assert (aligner.stats.noise_scale is not None) is noise


CHOICES = [Split(probes="rotate"), "split", "prefix", "leave_one_out", "symmetric", "momentum", "exact"]


@pytest.mark.parametrize("estimator", CHOICES, ids=str)
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_tasks_give_a_matrix_of_cosines(estimator, weight, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(200, 60)
    labels = ["b", "a", "b", "c", "a", "c", "b", "a"]
    targets = {name: torch.randn(60) for name in "abc"}
    batches = [(torch.randn(6, 200), targets[name]) for name in labels]

    def loss_fn(batch):
        x, target = batch
        return (model(x) - target).square().mean()

    gradients = {name: torch.zeros(60 * 201) for name in "abc"}
    for name, batch in zip(labels, batches, strict=True):
        pieces = torch.autograd.grad(loss_fn(batch), list(model.parameters()))
        gradients[name] += torch.cat([g.reshape(-1) for g in pieces])
    expected = cosines(torch.stack([gradients[name] for name in "abc"]).double())

    aligner = gradalign.GradAlign(model, weight, estimator=estimator)
    aligner.backward(loss_fn, batches, tasks=labels)
    stats = aligner.stats
    assert stats.tasks == ("a", "b", "c")
    assert float((stats.task_cosines - expected).abs().max()) < 4 * (2 / WIDTH) ** 0.5
    assert stats.as_dict()["task_cosines"] == stats.task_cosines.tolist()
    plot_tasks(stats, tmp_path / "tasks.png")
    assert (tmp_path / "tasks.png").stat().st_size > 1000


def test_labels_one_at_a_time_and_their_checks():
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1)
    with aligner.accumulate(4, tasks=["x", "y", "x", "y"]) as step:
        for batch in batches:
            step.backward(lambda batch=batch: loss_fn(batch))
    assert aligner.stats.tasks == ("x", "y")
    model.zero_grad()
    with pytest.raises(ValueError, match="tasks: expected one label for each of the 4 micro-batches"):
        aligner.backward(loss_fn, batches, tasks=["x"])
    aligner.backward(loss_fn, batches)
    with pytest.raises(ValueError, match="plot_tasks: expected statistics with tasks"):
        plot_tasks(aligner.stats, "nowhere.png")


def test_logs_are_plain_floats_of_what_is_known():
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1)
    aligner.backward(loss_fn, batches)
    found = logs(aligner.stats)
    names = {"loss", "passes", "grad_norm", "dot", "radius", "displacement_cosine"}
    assert set(found) == {f"align/{name}" for name in names}
    assert {type(value) for value in found.values()} == {float}
    assert found["align/passes"] == len(batches) + 1
    assert found["align/dot"] == float(aligner.stats.dot)
    assert set(logs(aligner.stats, prefix="")) == names


def test_before_the_first_step_there_is_nothing_to_log():
    with pytest.raises(ValueError, match=r"logs: expected the statistics of a step; got None"):
        gradalign.telemetry.logs(None)


def test_logs_name_every_pair_of_tasks():
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1)
    aligner.backward(loss_fn, batches, tasks=["b", "a", "c", "a"])
    pairs = {name: value for name, value in logs(aligner.stats, "").items() if name.startswith("task")}
    matrix = aligner.stats.task_cosines
    assert pairs == {
        "task_cosine/b/a": float(matrix[1, 0]),
        "task_cosine/c/a": float(matrix[2, 0]),
        "task_cosine/c/b": float(matrix[2, 1]),
    }


@pytest.mark.parametrize("tasks", [None, ["b", "a", "c", "a"]])
def test_logs_are_one_transfer(tasks, monkeypatch):
    model, loss_fn, batches = make(Counting)
    aligner = gradalign.GradAlign(model, 0.1, telemetry=True)
    aligner.backward(loss_fn, batches, tasks=tasks)
    read = []
    for name in ("item", "cpu"):  # tolist of what is on the CPU waits for nothing
        method = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda t, method=method: read.append(t.numel()) or method(t))
    assert len(logs(aligner.stats)) >= 10
    assert len(read) == 1


def test_a_running_sum_adds_in_order_and_scales_each_part_with_its_own_factor():
    parts = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    two, three = torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    running = RunningSum(torch.zeros((), dtype=torch.float64))
    assert float(running.total) == 0
    expected = torch.zeros((), dtype=torch.float64)
    for part, factor in zip(parts, (two, two, None, three, two), strict=True):
        running.add(part, factor, 2)
        expected = expected + (part if factor is None else part * factor)
        assert float(running.total) == pytest.approx(float(expected), rel=1e-15)
    assert running.num == 10
    running.replace(two)
    assert float(running.total) == 2


def test_labels_of_tasks_are_text_even_where_they_have_dollar_signs(tmp_path):
    labels = ("$a^$", "cost $5 and $6")
    stats = AlignmentStats(torch.tensor(1.0), passes=2, tasks=labels, task_cosines=torch.eye(2))
    plot_tasks(stats, tmp_path / "tasks.svg")
    plot_tasks(stats, tmp_path / "tasks.png")
    assert all(f"<!-- {label} -->" in (tmp_path / "tasks.svg").read_text() for label in labels)
