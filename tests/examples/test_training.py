"""The shared loop: methods, options, shuffles, intervals and the record."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from torch import nn

import gradalign
from gradalign.cli.errors import CommandError

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
Y = X[:, :1] + 0.1


@pytest.fixture
def training(example):
    return example("training")


@pytest.fixture
def args(training):
    """Options of a small run, with others on top."""

    def parsed(*argv):
        small = ["--batch-size=8", "--micro-batches=4", "--steps=3", "--lr=0.05", "--warmup=0.4", "--device=cpu"]
        return training.parse(training.parser("An example.\n\n    its command", model="tiny"), [*small, *argv])

    return parsed


def make_run(training, args, seed, seen=None):
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
    steps = [
        [{"x": X[part], "y": Y[part]} for part in step]
        for step, _ in zip(training.shuffled(40, args, seed), range(3), strict=False)
    ]
    if seen is not None:
        seen.append((torch.cat([p.detach().flatten() for p in model.parameters()]), [b["x"] for s in steps for b in s]))
    return training.Run(
        model,
        lambda batch: (model(batch["x"]) - batch["y"]).square().mean(),
        steps,
        steps_per_epoch=5,
        evaluate=lambda: {"error": float((model(X) - Y).square().mean())},
    )


def plain_loop(run, lrs):
    """Plain accumulation by hand, at these learning rates."""
    matrices, others = ([p for p in run.model.parameters() if (p.dim() > 1) == x] for x in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0.0}], weight_decay=0.01)
    for micro_batches, lr in zip(run.steps, lrs, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for micro_batch in micro_batches:
            (run.loss_fn(micro_batch) / len(micro_batches)).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_plain_is_the_loop_by_hand(training, args):
    models = []
    for by_hand in (True, False):
        torch.manual_seed(3)
        run = make_run(training, args(), 0)
        torch.manual_seed(4)
        if by_hand:
            plain_loop(run, [0.0, 0.05, 0.025])  # one step of warm-up, then down to 0 after the last
        else:
            rows = training.train(run, "plain", args())
        models.append(run.model)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
    assert [row["step"] for row in rows] == [0, 2]
    assert [row["lr"] for row in rows] == [0.0, 0.025]
    assert rows[0]["align/passes"] == 4


@pytest.mark.parametrize(
    ("method", "own", "expected"),
    [
        ("plain", [], lambda m: gradalign.GradAlign(m, 0.0)),
        (
            "gradalign",
            ["--weight=0.1", "--objective=cosine", "--estimator=leave_one_out", "--normalize=none"],
            lambda m: gradalign.GradAlign(m, 0.1, objective="cosine", estimator="leave_one_out", normalize="none"),
        ),
        ("reptile", ["--inner-lr=0.1"], lambda m: gradalign.baselines.Reptile(m, 0.1)),
        ("fomaml", ["--inner-lr=0.1"], lambda m: gradalign.baselines.FOMAML(m, 0.1)),
        ("sam", ["--rho=0.2"], lambda m: gradalign.baselines.SAM(m, 0.2)),
    ],
)
def test_a_method_has_the_options_it_was_given(training, args, method, own, expected):
    grads = []
    for make in (lambda m: training.METHODS[method](m, args(f"--method={method}", *own), 0), expected):
        torch.manual_seed(0)
        run = make_run(training, args(), 0)
        make(run.model).backward(run.loss_fn, run.steps[0])
        grads.append([p.grad for p in run.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_the_weight_rises_with_the_learning_rate(training, args):
    model = nn.Linear(4, 1)
    aligner = training.METHODS["gradalign"](model, args("--weight=0.4"), 4)
    assert [aligner._weight.at(step) for step in (0, 1, 3, 9)] == pytest.approx([0.1, 0.2, 0.4, 0.4])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--method=plain", "--rho=0.1"], "--rho: expected only with --method sam; got --method plain"),
        (["--method=sam", "--weight=0.1"], "--weight: expected only with --method gradalign"),
        (["--inner-lr=0.1"], "--inner-lr: expected only with --method reptile or fomaml"),
        (["--micro-batches=3"], "expected a multiple of --micro-batches; got 8 and 3"),
        (["--device=nowhere"], "--device: expected one that PyTorch can use here"),
        (["--out=."], "--out: expected the name of a file; got '.', a directory"),
        (
            ["--first-seed=9223372036854775", "--seeds=2"],
            "--first-seed: expected at most 9223372036854773, with 2 seeds",
        ),
        (["--method=adam"], "invalid choice: 'adam'"),
    ],
)
def test_options_that_do_not_fit_are_refused(args, capsys, argv, words):
    with pytest.raises(SystemExit):
        args(*argv)
    assert words in capsys.readouterr().err


def test_help_shows_the_commands_of_the_example(args, capsys):
    with pytest.raises(SystemExit):
        args("--help")
    shown = capsys.readouterr().out
    assert "An example." in shown
    assert "    its command" in shown
    assert "{plain,gradalign,reptile,fomaml,sam}" in shown


def test_an_epoch_has_every_row_once_in_its_own_order(training, args):
    steps = training.shuffled(19, args(), seed=0)
    first, second = ([i for _ in range(2) for part in next(steps) for i in part] for _ in range(2))
    assert [len(part) for part in next(steps)] == [2, 2, 2, 2]
    assert len(set(first)) == len(set(second)) == 16  # three rows fill no step
    assert first != second
    assert next(training.shuffled(19, args(), seed=0))[0] == first[:2]
    assert [len(part) for part in next(training.shuffled(4, args(), 0, parts=2))] == [2, 2]
    with pytest.raises(CommandError, match="expected at most 6, for 3 rows; got 8"):
        next(training.shuffled(3, args(), 0, parts=2))


def test_all_methods_of_a_seed_start_alike_and_see_the_same(training, args, capsys):
    seen = []
    record = training.compare(
        args("--method", "plain", "sam", "--seeds=2"), lambda seed: make_run(training, args(), seed, seen)
    )
    (plain_0, sam_0, plain_1, sam_1) = seen
    for one, other, same in ((plain_0, sam_0, True), (plain_1, sam_1, True), (plain_0, plain_1, False)):
        assert torch.equal(one[0], other[0]) is same
        assert all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True)) is same
    assert [run["seed"] for run in record["runs"]["sam"]] == [0, 1]
    assert "2 seeds; 3 or more give an interval" in capsys.readouterr().out


def test_dropout_does_not_depend_on_how_the_weights_were_made(training, args):
    errors = []
    for drawn in (0, 3):

        def make(seed, drawn=drawn):
            run = make_run(training, args(), seed)
            torch.rand(drawn)
            return run

        record = training.compare(args("--method=plain"), make)
        errors.append(record["runs"]["plain"][0]["metrics"]["error"])
    assert errors[0] == errors[1]


def test_the_record_holds_the_intervals_that_are_printed(training, args, capsys, tmp_path):
    out = tmp_path / "new" / "run.json"
    given = args("--method", "plain", "reptile", "--seeds=3", "--first-seed=5", f"--out={out}")
    training.compare(given, lambda seed: make_run(training, given, seed))
    record = json.loads(out.read_text())
    values = {m: [run["metrics"]["error"] for run in runs] for m, runs in record["runs"].items()}
    differences = [b - a for a, b in zip(values["plain"], values["reptile"], strict=True)]
    found = record["differences"]["reptile - plain"]["error"]
    assert found["mean"] == pytest.approx(sum(differences) / 3)
    deviation = math.sqrt(sum((d - found["mean"]) ** 2 for d in differences) / 2)
    assert found["half_width"] == pytest.approx(4.302653 * deviation / math.sqrt(3))  # t(0.975, 2 degrees)
    printed = capsys.readouterr().out
    for name, sign in (("means", ""), ("differences", "+")):
        for group, metrics in record[name].items():
            mean, half_width = metrics["error"]["mean"], metrics["error"]["half_width"]
            assert f"{group}  " in printed
            assert f"{mean:{sign}.4f} +/- {half_width:.4f}" in printed
    assert [run["seed"] for run in record["runs"]["plain"]] == [5, 6, 7]
    assert record["settings"]["inner_lr"] == 0.01
    assert record["settings"]["weight"] is None  # neither method has it
    assert record["versions"]["torch"] == str(torch.__version__)


def test_passes_are_relative_to_plain(training, args, capsys):
    given = args("--method", "plain", "gradalign", "sam")
    record = training.compare(given, lambda seed: make_run(training, given, seed))
    assert record["passes"] == {"plain": 1, "gradalign": 1.25, "sam": 2}
    printed = capsys.readouterr().out
    for method, passes in record["passes"].items():
        mean = record["means"][method]["error"]["mean"]
        assert re.search(rf"^  {method} +{mean:.4f}  passes {passes:g}$", printed, re.MULTILINE)


def broken_run(training, given, seed, what, broken=1):
    """A run that breaks on one seed: its loss, a weight at the end, or its metric alone."""
    run = make_run(training, given, seed)
    if seed != broken:
        return run
    if what == "loss":
        run.loss_fn = lambda batch, inner=run.loss_fn: inner(batch) + math.inf  # with finite gradients
    elif what == "weight":

        def spoilt(inner=run.evaluate):
            next(run.model.parameters()).data.fill_(math.nan)
            return {"error": 0.5}

        run.evaluate = spoilt
    else:
        run.evaluate = lambda: {"error": math.inf}
    return run


@pytest.mark.parametrize("what", ["loss", "weight", "metric"])
def test_a_run_that_diverges_is_said_and_spoils_no_other(training, args, tmp_path, capsys, what):
    out = tmp_path / "run.json"
    given = args("--method", "plain", "sam", "--seeds=3", f"--out={out}")
    record = training.compare(given, lambda seed: broken_run(training, given, seed, what))

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(out.read_text(), parse_constant=refuse)
    for method in ("plain", "sam"):
        runs = read["runs"][method]
        assert [run.get("diverged", False) for run in runs] == [False, True, False]
        assert [run["metrics"]["error"] is None for run in runs] == [False, True, False]
        assert not math.isfinite(record["runs"][method][1]["metrics"]["error"])
        assert read["means"][method]["error"] == {"mean": None, "half_width": None}
    printed = capsys.readouterr()
    for name in ("plain", "sam", "sam - plain"):
        assert re.search(rf"^  {name} +not finite", printed.out, re.MULTILINE)
    warnings = [line for line in printed.err.splitlines() if "warning:" in line]
    assert [line.partition("warning: ")[2].partition(";")[0] for line in warnings] == [
        "plain, seed 1: diverged",
        "sam, seed 1: diverged",
    ]


def test_metrics_of_logits_that_are_not_finite_are_none(training):
    fine = torch.zeros(2)
    assert training.measured({"accuracy": 0.5}, [fine, fine]) == {"accuracy": 0.5}
    assert math.isnan(training.measured({"accuracy": 0.5}, [fine, torch.tensor([0.0, math.inf])])["accuracy"])


def test_what_is_finished_is_on_the_disk(training, args, tmp_path, capsys):
    out = tmp_path / "run.json"
    given = args("--method", "plain", "sam", "--seeds=2", f"--out={out}")
    seen = []

    def interrupted(seed):
        if out.exists():
            seen.append(json.loads(out.read_text()))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return make_run(training, given, seed)

    with pytest.raises(SystemExit) as stopped:
        training.run_main(lambda: training.compare(given, interrupted, {"train": {"used": 40, "left_out": 0}}))
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; where --out was given, it has the finished runs"
    assert [{method: len(runs) for method, runs in record["runs"].items()} for record in seen] == [
        {"plain": 1, "sam": 0},
        {"plain": 1, "sam": 1},
        {"plain": 2, "sam": 1},
    ]
    assert not any(record["complete"] for record in seen)
    assert json.loads(out.read_text()) == seen[-1]
    (first, second), (other,) = ([run["metrics"]["error"] for run in seen[-1]["runs"][m]] for m in ("plain", "sam"))
    assert seen[-1]["means"]["plain"]["error"]["mean"] == pytest.approx((first + second) / 2)
    assert seen[-1]["differences"]["sam - plain"]["error"]["mean"] == pytest.approx(other - first)
    record = training.compare(
        given, lambda seed: make_run(training, given, seed), {"train": {"used": 40, "left_out": 0}}
    )
    assert record["complete"]
    assert json.loads(out.read_text())["complete"]
    assert record["rows"] == {"train": {"used": 40, "left_out": 0}}


def test_epochs_count_steps(training, args):
    given = args()
    given.steps, given.epochs = None, 0.4
    run = make_run(training, given, 0)
    assert [row["step"] for row in training.train(run, "plain", given)] == [0, 1]


def test_labels_of_micro_batches_reach_the_method(training, args):
    run = make_run(training, args(), 0)
    run.steps = [
        [{**batch, "task": "abba"[(i + step) % 4]} for i, batch in enumerate(batches)]
        for step, batches in enumerate(run.steps)
    ]
    run.task_of = lambda batch: batch["task"]
    rows = training.train(run, "gradalign", args())
    assert -1 <= rows[-1]["align/task_cosine/b/a"] <= 1


def test_bfloat16_is_autocast(training, args):
    given = args("--bf16")
    run = make_run(training, given, 0)
    dtypes = []
    run.loss_fn = lambda batch, inner=run.loss_fn: (dtypes.append(run.model(batch["x"]).dtype), inner(batch))[1]
    training.train(run, "plain", given)
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_models_come_from_folders_packages_and_the_hub(training, tmp_path, asset, monkeypatch):
    with pytest.raises(
        CommandError, match="--model: expected bert-tiny, minilm, a folder or a hub name .*; got '.*nowhere'"
    ):
        training.model_source(str(tmp_path / "nowhere"))
    with pytest.raises(CommandError, match="--model: expected .*; got "):
        training.model_source(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert training.model_source(str(tmp_path)) == (
        str(tmp_path),
        {"local_files_only": True, "trust_remote_code": False},
    )
    with monkeypatch.context() as patch:
        patch.setattr(training.AutoConfig, "from_pretrained", lambda name, **options: None)
        from_hub = training.model_source("owner/name")
    assert from_hub == (
        "owner/name",
        {"local_files_only": False, "trust_remote_code": False},
    )
    assert training.model_source("bert-tiny")[0] == str(asset("bert-tiny"))


def test_an_error_of_the_user_has_no_traceback(training):
    def fail():
        raise CommandError("expected more")

    with pytest.raises(SystemExit, match="error: expected more"):
        training.run_main(fail)
