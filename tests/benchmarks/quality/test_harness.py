"""The harness on a toy task: what is run, what survives a kill, what is chosen, and what the comparison says."""

from __future__ import annotations

import json
from itertools import permutations

import pytest
import torch
from torch import nn

from benchmarks.quality import __main__ as command
from benchmarks.quality import comparison, protocol, rows
from benchmarks.quality.arms import ARMS, TRIALS, spaced, trials
from benchmarks.quality.rows import Cell
from benchmarks.quality.task import TUNING_SEEDS, Problem, Task
from benchmarks.quality.tasks import TASKS
from benchmarks.quality.tasks.mixing import as_micro_batches
from benchmarks.quality.training import Job, in_turn, run

SEEDS = 2


def problem(seed, mixed):
    """A quadratic with another optimum for each source; `test` is better the nearer the parameters are to their mean."""
    torch.manual_seed(seed)
    model = nn.Linear(2, 1, bias=False)
    inputs = torch.eye(2)
    train = [(inputs, torch.tensor([1.0, s])) for s in (0.0, 2.0)]

    def evaluate(model):
        distance = float((model.weight.detach() - torch.tensor([[1.0, 1.0]])).norm())
        return {"validation": -distance, "source_validation": -2 * distance, "test": -distance, "twice": -2 * distance}

    def loss_fn(model, batch):
        return (model(batch[0]).squeeze(1) - batch[1]).square().mean()

    return Problem(model, loss_fn, as_micro_batches(train, None, seed, mixed), ("a", "b"), evaluate)


TOY = Task("toy", "a toy", problem, True, "sgd", (0.1, 0.3), steps=4, evaluate_every=2, ramp=2, seeds=SEEDS)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", TOY)
    return TOY


def without_seconds(found):
    return sorted(json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in found if row["kind"] == "run")


def test_every_arm_has_the_same_number_of_trials():
    for optimizer in ("sgd", "adamw"):
        task = Task("t", "", problem, True, optimizer, (0.1, 0.3), 1, 1, 0)
        assert {len(set(trials(task, arm))) for arm in ARMS.values()} == {TRIALS}
        with_value = trials(task, ARMS["cosine"])
        assert [lr for lr, _ in with_value] == [lr for lr, _ in trials(task, ARMS["plain"])]
        assert len({value for _, value in with_value}) == TRIALS
    assert spaced(0.01, 1.0, 3) == [0.01, 0.1, 1.0]

    # All tasks have learning rates over a factor of 20.
    assert {round(task.lrs[1] / task.lrs[0], 6) for task in TASKS.values()} == {20.0}


def test_a_run_is_the_loop_by_hand(toy):
    row = run(toy, Job("weight decay", False, 0.1, 0.5, 0, 4), True)
    made = problem(0, False)
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1, weight_decay=0.5)
    curve = []
    for step in range(4):
        sum(made.loss_fn(made.model, batch) / 2 for batch in made.micro_batches(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 2:
            curve.append([step + 1, round(made.evaluate(made.model)["test"], 4)])
    assert row["curve"] == curve
    assert row["final"]["test"] == curve[-1][-1]
    assert row["stopped"]["step"] == 4
    assert row["passes"] == 8


def test_the_term_of_an_aligned_arm_rises_and_counts_its_passes(toy):
    row = run(toy, Job("cosine", False, 0.1, 0.3, 0, 4), False)
    assert row["passes"] == 2 * 2 * 4
    assert "curve" not in row
    assert row["final"] != run(toy, Job("plain", False, 0.1, 0.0, 0, 4), False)["final"]


def test_a_diverged_run_counts_as_untrained(toy):
    row = run(toy, Job("plain", False, 1e30, 0.0, 0, 4), False)
    assert row["final"] == {k: round(v, 4) for k, v in problem(0, False).evaluate(problem(0, False).model).items()}


def test_a_killed_run_goes_on_where_it_was(toy, tmp_path):
    arms = ["plain", "cosine", "plain, equal passes"]
    command.measure(toy, arms, SEEDS, 2, tmp_path)
    whole = rows.read(rows.path(tmp_path, "toy"))
    lines = rows.path(tmp_path, "toy").read_text().splitlines()
    killed = tmp_path / "killed"
    killed.mkdir()
    rows.path(killed, "toy").write_text("\n".join(lines[:20]) + "\n" + lines[20][:30])
    command.measure(toy, ["plain"], SEEDS, 1, killed)
    command.measure(toy, arms, SEEDS, 1, killed)
    resumed = rows.read(rows.path(killed, "toy"))
    assert without_seconds(resumed) == without_seconds(whole)
    assert len(without_seconds(whole)) == len(rows.runs(whole))
    assert {row["seed"] for row in whole if row["kind"] == "run"} == {0, 1, *TUNING_SEEDS}
    timed = rows.runs(whole, "timing")
    assert {(job.arm, job.seed) for job in timed} == {("cosine", 0), ("cosine", 1), ("cosine", 2)}
    assert len(rows.runs(resumed, "timing")) == len(timed)
    text = comparison.text(toy, whole)
    assert "toy: a toy; 2 seeds" in text
    assert "cosine, sources mixed" in text


def row(arm, lr, seed, test, mixed=False, steps=4, value=0.0, kind="run", **other):
    found = {"validation": test, "source_validation": -test, "test": test}
    job = Job(arm, mixed, lr, value, seed, steps)._asdict()
    stops = {"final": found, "stopped": {"step": 2, **found}}
    return {**job, "kind": kind, "passes": 4, **stops, **other}


def timing(arm, seed, seconds, plain_seconds):
    return row(arm, 0.1, seed, 0.5, kind="timing", seconds=seconds, plain_seconds=plain_seconds)


def test_settings_are_chosen_on_tuning_seeds_alone():
    found = [row("plain", lr, seed, 0.5 + lr, steps=4) for lr in (0.1, 0.2, 0.3) for seed in TUNING_SEEDS]
    found += [row("plain", lr, seed, 0.9 - lr) for lr in (0.1, 0.3) for seed in (0, 1)]
    found += [row("plain", 0.4, TUNING_SEEDS[0], 1.0)]  # not tried on all of them
    runs = rows.runs(found)
    assert rows.chosen(runs, Cell("plain"), "validation") == (0.3, 0.0)
    assert rows.chosen(runs, Cell("plain"), "source") == (0.1, 0.0)
    assert {s: r["final"]["test"] for s, r in rows.reported(runs, TOY, Cell("plain"), "validation").items()} == {
        0: pytest.approx(0.6),
        1: pytest.approx(0.6),
    }


def test_untuned_is_the_start_at_the_lr_that_the_sources_choose_for_plain_training():
    assert ARMS["SAM"].start == 0.05
    found = [row("plain", lr, seed, 0.5 + lr) for lr in (0.1, 0.2) for seed in TUNING_SEEDS]
    found += [row("plain, equal passes", lr, seed, 0.5 - lr) for lr in (0.1, 0.2) for seed in TUNING_SEEDS]
    found += [
        row("SAM", lr, seed, 0.5 + lr * sign, value=value)
        for lr, value, sign in ((0.1, 0.03, 1), (0.2, 0.06, -9), (0.3, 0.2, 1))
        for seed in TUNING_SEEDS
    ]
    runs = rows.runs(found)
    assert rows.chosen(runs, Cell("SAM"), "start") == (0.1, 0.05)
    assert rows.chosen(runs, Cell("plain"), "start") == (0.1, 0.0)
    assert rows.chosen(runs, Cell("plain, equal passes"), "start") == (0.2, 0.0)
    assert rows.chosen(runs, Cell("SAM"), "source") == (0.2, 0.06)
    assert rows.chosen(runs, Cell("SAM"), "validation") == (0.3, 0.2)


def test_arms_that_take_the_lr_of_plain_training_say_so_without_it(toy, tmp_path):
    with pytest.raises(ValueError, match="cosine: expected rows of plain before it; got none; run it first"):
        command.measure(toy, ["cosine"], SEEDS, 1, tmp_path)


def test_micro_batches_come_in_another_order_each_step_and_seed():
    made = Problem(nn.Linear(1, 1), None, lambda step: [0, 1, 2], None, None)
    orders = [tuple(in_turn(made, seed, step)) for seed in range(5) for step in range(20)]
    assert orders == [tuple(in_turn(made, seed, step)) for seed in range(5) for step in range(20)]
    assert set(orders) == set(permutations(range(3)))
    assert len({tuple(orders[20 * seed : 20 * seed + 20]) for seed in range(5)}) == 5


def test_gains_are_paired_by_seed_and_corrected():
    found = []
    for arm, gain in (("plain", 0.0), ("SAM", 0.1), ("Reptile", 0.0)):
        noise = torch.randn(10, generator=torch.Generator().manual_seed(len(arm))) * 0.01
        found += [row(arm, 0.1, seed, 0.5) for seed in TUNING_SEEDS]
        found += [row(arm, 0.1, seed, 0.02 * seed + gain + (float(noise[seed]) if gain else 0)) for seed in range(10)]
    by_arm = {line.cell.arm: line for line in comparison.lines(TOY, found, "validation")}
    sam, reptile = by_arm["SAM"].gains["equal steps"], by_arm["Reptile"].gains["equal steps"]
    assert sam.clear
    assert sam.mean == pytest.approx(0.1, abs=0.01)
    assert sam.p == pytest.approx(2 * 2 / 2**10)  # all differences have one sign; two arms
    assert (reptile.mean, reptile.p) == (0.0, 1.0)
    assert by_arm["plain"].gains["equal steps"] is None
    assert by_arm["SAM"].gains["equal passes"] is None


def test_steps_at_equal_time_are_those_of_the_dearest_arm_and_are_kept():
    found = [row("plain", 0.1, 0, 0.5, passes=4), row("cosine", 0.1, 0, 0.5, passes=8)]
    found += [row("Reptile", 0.1, 0, 0.5, passes=4), row("SAM", 0.1, 0, 0.5, passes=90)]
    runs = rows.runs(found)
    assert protocol.steps_of(TOY, ARMS["plain"], runs, runs) == 4
    assert protocol.steps_of(TOY, ARMS["plain, equal passes"], runs, {}) == 8
    # An arm's seconds are those beside plain training that ran with it: here the machine became slower.
    found = [timing("cosine", seed, 2.5 * slow, slow) for seed, slow in ((0, 1.0), (1, 2.0))]
    timed = rows.runs([*found, timing("Reptile", 0, 9.0, 6.0), timing("SAM", 0, 9.0, 1.0)], "timing")
    assert protocol.steps_of(TOY, ARMS["plain, equal seconds"], runs, timed) == 10
    begun = rows.runs([row("plain, equal seconds", 0.1, 0, 0.5, steps=7)])
    assert protocol.steps_of(TOY, ARMS["plain, equal seconds"], runs | begun, {}) == 7
    for known, measured, lacking in (({}, timed, "none of an aligned arm"), (runs, {}, "Reptile, cosine")):
        with pytest.raises(ValueError, match=f"timings of all such arms; lacking: {lacking}; run these first"):
            protocol.steps_of(TOY, ARMS["plain, equal seconds"], known, measured)
    with pytest.raises(ValueError, match="expected rows of plain and of an aligned arm before it, .*; run these first"):
        protocol.steps_of(TOY, ARMS["plain, equal passes"], {}, {})


def test_mixed_micro_batches_hold_the_same_samples():
    train = [(torch.arange(6.0) + 10 * s, torch.full((6,), float(s))) for s in range(2)]
    for size in (None, 4):
        apart, mixed = (as_micro_batches(train, size, 3, flag) for flag in (False, True))
        for step in (0, 1):
            a, b = apart(step), mixed(step)
            assert [len(labels) for _, labels in b] == [len(labels) for _, labels in a]
            assert torch.cat([x for x, _ in a]).sort().values.equal(torch.cat([x for x, _ in b]).sort().values)
            assert all(labels.unique().numel() == 1 for _, labels in a)
            assert any(labels.unique().numel() == 2 for _, labels in b)
            assert torch.equal(apart(step)[0][0], a[0][0])


@pytest.mark.parametrize("argv", [[], ["toy", "--compare", "toy"]])
def test_one_thing_at_a_time(toy, argv, capsys):
    assert command.main(argv) == 2
    assert "expected a task, --compare or --plot, and one of them only" in capsys.readouterr().err
