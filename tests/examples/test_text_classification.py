"""The example trains on every method, architecture and task, and measures what it says."""

from __future__ import annotations

import json
import math

import datasets
import pytest
import torch
from support import tiny_models
from support.superglue_rows import PUBLISHED

from gradalign.cli.errors import CommandError

SMALL = ["--steps=2", "--batch-size=8", "--micro-batches=4", "--lr=0.01", "--max-length=48", "--device=cpu"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_models.save(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def text_classification(example):
    return example("text_classification")


@pytest.fixture
def superglue_folder(tmp_path):
    """The published layout, every task with at least eight rows."""
    folders = ("BoolQ", "CB", "COPA", "MultiRC", "ReCoRD", "RTE", "WiC", "WSC")
    for folder, rows in zip(folders, PUBLISHED.values(), strict=True):
        (tmp_path / folder).mkdir()
        for file, times in (("train.jsonl", 8), ("val.jsonl", 1)):
            (tmp_path / folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows * times))
    return str(tmp_path)


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file: texts with an x are of class yes."""

    def write(name, num=16):
        rows = [("x marks it", "yes"), ("nothing here", "no")] * (num // 2)
        (tmp_path / name).write_text("text,label\n" + "".join(f"{text} {i},{y}\n" for i, (text, y) in enumerate(rows)))
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("method", ["plain", "gradalign", "reptile", "fomaml", "sam"])
def test_every_method_trains(text_classification, bert, table, tmp_path, method):
    options = [f"--train={table('a.train.csv')}", f"--validation={table('a.validation.csv')}", f"--model={bert}"]
    record = text_classification.main([*SMALL, *options, "--method", method, f"--out={tmp_path / 'out.json'}"])
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"][method]
    assert set(run["metrics"]) == {"accuracy", "f1"}
    assert run["history"][-1]["align/passes"] == {"gradalign": 5, "sam": 8}.get(method, 4)
    assert run == record["runs"][method][0]


@pytest.mark.parametrize(("architecture", "sizes"), [("roberta", {}), ("electra", {"embedding_size": 16})])
def test_other_encoders_train(text_classification, table, tmp_path, architecture, sizes):
    model = tiny_models.save(tmp_path / "model", architecture, **sizes)
    options = [f"--train={table('a.train.csv')}", f"--validation={table('a.validation.csv')}", f"--model={model}"]
    record = text_classification.main([*SMALL, *options, "--pooling=mean"])
    assert 0 <= record["means"]["gradalign"]["accuracy"]["mean"] <= 1


def test_all_tasks_of_superglue_at_once(text_classification, bert, superglue_folder, capsys):
    tasks = list(PUBLISHED)
    options = [f"--data={superglue_folder}", f"--model={bert}", "--micro-batches=16", "--batch-size=16"]
    record = text_classification.main([*SMALL, *options, "--method", "gradalign", "--tasks", *tasks])
    (run,) = record["runs"]["gradalign"]
    single = ["boolq/accuracy", "copa/accuracy", "rte/accuracy", "wic/accuracy", "wsc/accuracy"]
    double = [("cb", "accuracy", "f1"), ("multirc", "f1a", "exact_match"), ("record", "f1", "exact_match")]
    pairs = [(f"{task}/{a}", f"{task}/{b}") for task, a, b in double]
    metrics = run["metrics"]
    assert set(metrics) == {*single, *(name for pair in pairs for name in pair), "mean"}
    of_tasks = [metrics[name] for name in single] + [(metrics[a] + metrics[b]) / 2 for a, b in pairs]
    assert metrics["mean"] == pytest.approx(sum(of_tasks) / 8)
    assert {name for name in run["history"][-1] if "task_cosine" in name} == {
        f"align/task_cosine/{b}/{a}" for a in tasks for b in tasks if a < b
    }
    assert "Split(probe_fraction=0.25, probes='rotate')" in record["settings"]["estimator"]
    assert "multirc/exact_match" in capsys.readouterr().out


@pytest.mark.parametrize("estimator", ["split", "leave_one_out"])
def test_gradients_of_tasks_are_compared_where_asked(text_classification, bert, table, estimator):
    files = [table(f"{name}.csv") for name in ("a", "b", "c", "d")]
    options = ["--train", *files[:2], "--validation", *files[2:], f"--model={bert}", f"--estimator={estimator}"]
    ways = {}
    for between in ([], ["--between-tasks"]):
        record = text_classification.main([*SMALL, *options, *between, "--micro-batches=8"])
        ways[bool(between)] = record["runs"]["gradalign"][0]["history"][0]["align/cosine"]
    assert ways[True] != ways[False]


def test_it_learns_what_a_word_tells(text_classification, bert, table):
    options = [f"--train={table('a.csv', 64)}", f"--validation={table('b.csv', 64)}", f"--model={bert}"]
    record = text_classification.main([*SMALL, *options, "--steps=60", "--method=plain", "--pooling=mean"])
    assert record["means"]["plain"]["accuracy"]["mean"] > 0.9


def test_micro_batches_are_of_all_tasks_in_turn(text_classification, bert, table):
    args = text_classification.parse(
        [*SMALL, "--train", table("a.csv"), table("b.csv"), "--validation", table("c.csv"), table("d.csv")]
    )
    tokenizer = tiny_models.tiny_tokenizer()
    data = {
        name: text_classification.Data(task, *(text_classification.Samples(s, tokenizer, 48) for s in splits))
        for name, task, splits, _ in text_classification.tables(args)
    }
    steps = text_classification.steps_of(data, args, seed=0)
    seen = {"a": set(), "b": set()}
    for _ in range(4):  # of 16 rows a step takes 4 from each task
        step = next(steps)
        assert [micro_batch["task"] for micro_batch in step] in (["a", "b"] * 2, ["b", "a"] * 2)
        for micro_batch in step:
            assert len(micro_batch["labels"]) == 2
            seen[micro_batch["task"]] |= {tuple(ids.tolist()) for ids in micro_batch["input_ids"]}
    assert [len({row[:20] for row in rows}) for rows in seen.values()] == [16, 16]


@pytest.fixture
def two_tasks(text_classification, table):
    """Data of two tasks, and their steps for a seed as (task, labels)."""
    argv = ["--train", table("a.csv"), table("b.csv"), "--validation", table("c.csv"), table("d.csv")]
    args = text_classification.parse([*SMALL, *argv])
    data = {
        read.name: text_classification.Data(
            read.task, *(text_classification.Samples(s, tiny_models.tiny_tokenizer(), 48) for s in read.samples)
        )
        for read in text_classification.tables(args)
    }

    def steps(seed, num):
        found = zip(range(num), text_classification.steps_of(data, args, seed), strict=False)
        return [[(batch["task"], batch["input_ids"].tolist()) for batch in step] for _, step in found]

    return steps


def test_which_task_is_last_is_drawn_for_every_step(two_tasks):
    steps = two_tasks(0, 64)
    last = [step[-1][0] for step in steps]
    assert 20 <= last.count("a") <= 44  # of 64 fair draws, all but one in 400 times
    assert last != sorted(last)
    assert steps == two_tasks(0, 64)  # the same for every method
    assert last != [step[-1][0] for step in two_tasks(1, 64)]


def test_fomaml_trains_every_task(text_classification, bert, table, monkeypatch):
    made = []

    class Kept(text_classification.Classifier):
        def __init__(self, *args):
            super().__init__(*args)
            made.append((self, {name: head.weight.detach().clone() for name, head in self.heads.items()}))

    monkeypatch.setattr(text_classification, "Classifier", Kept)
    files = [table(f"{name}.csv") for name in ("a", "b", "c", "d")]
    options = ["--train", *files[:2], "--validation", *files[2:], f"--model={bert}", "--weight-decay=0", "--steps=8"]
    text_classification.main([*SMALL, *options, "--method=fomaml"])
    ((model, before),) = made
    assert {name: bool((model.heads[name].weight != before[name]).any()) for name in before} == {
        "of_a": True,
        "of_b": True,
    }


def test_a_table_may_have_the_name_of_a_method_of_modules(text_classification, bert, table):
    options = [f"--train={table('train.csv')}", f"--validation={table('validation.csv')}", f"--model={bert}"]
    record = text_classification.main([*SMALL, *options, "--method=plain"])
    assert set(record["runs"]["plain"][0]["metrics"]) == {"accuracy", "f1"}


def test_rows_without_a_text_or_a_label_are_counted(text_classification, bert, tmp_path, capsys):
    rows = ["a,None", "NA,None", ",None", "b,NA", "null,NA", "c,"]
    for name in ("t", "v"):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows, *rows]))
    options = [f"--train={tmp_path / 't.csv'}", f"--validation={tmp_path / 'v.csv'}", f"--model={bert}"]
    record = text_classification.main([*SMALL, *options, "--method=plain"])
    assert record["rows"] == {f"t, {split}": {"used": 8, "left_out": 4} for split in ("train", "validation")}
    assert "t, train: 8 used, 4 left out" in capsys.readouterr().out


@pytest.mark.parametrize(("named", "used", "classes"), [(True, 8, ["0", "1"]), (False, 12, ["-1", "0", "1"])])
def test_a_negative_number_of_a_named_class_is_no_label(text_classification, tmp_path, named, used, classes):
    kind = datasets.ClassLabel(names=["no", "yes"]) if named else datasets.Value("int64")
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    rows = {"text": list("abcdefghijkl"), "label": [0, 1, -1] * 4}
    for name in ("a", "b"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{name}.parquet")
    files = [f"--train={tmp_path / 'a.parquet'}", f"--validation={tmp_path / 'b.parquet'}"]
    (read,) = text_classification.tables(text_classification.parse([*SMALL, *files]))
    assert [len(samples) for samples in read.samples] == [used, used]
    assert read.left_out == [12 - used] * 2
    assert read.task.num_classes == len(classes)
    assert {sample.label for sample in read.samples[0]} == set(range(len(classes)))


def test_a_model_full_of_nan_has_no_accuracy(text_classification, bert, table, monkeypatch):
    load = text_classification.load_encoder

    def spoilt(name):
        encoder = load(name)
        encoder.embeddings.LayerNorm.bias.data[0] = torch.nan
        return encoder

    monkeypatch.setattr(text_classification, "load_encoder", spoilt)
    options = [f"--train={table('a.csv')}", f"--validation={table('b.csv')}", f"--model={bert}", "--method=plain"]
    (run,) = text_classification.main([*SMALL, *options])["runs"]["plain"]
    assert run["diverged"]
    assert all(math.isnan(value) for value in run["metrics"].values())


def test_logits_that_are_not_finite_are_no_decisions(text_classification, bert, two_tasks, table):
    args = text_classification.parse([*SMALL, f"--train={table('a.csv')}", f"--validation={table('c.csv')}"])
    (read,) = text_classification.tables(args)
    samples = [text_classification.Samples(s, tiny_models.tiny_tokenizer(), 48) for s in read.samples]
    data = {"a": text_classification.Data(read.task, *samples)}
    model = text_classification.Classifier(text_classification.load_encoder(bert), {"a": 2}, "first").eval()
    with torch.no_grad():
        assert math.isfinite(text_classification.evaluate(model, data, args.device)["accuracy"])
        model.heads["of_a"].weight.fill_(
            torch.finfo(torch.float32).max
        )  # the weights are finite, what they give is not
        found = text_classification.evaluate(model, data, args.device)
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(("architecture", "longest"), [("bert", 96), ("roberta", 95)])
def test_texts_are_no_longer_than_the_positions_of_the_model(
    text_classification, table, tmp_path, architecture, longest
):
    model = tiny_models.save(tmp_path / "model", architecture)  # RoBERTa's first position is that of padding
    options = [f"--train={table('a.csv')}", f"--validation={table('b.csv')}", f"--model={model}", "--method=plain"]
    with pytest.raises(CommandError, match=f"--max-length: expected at most {longest}, which the model reads; got 97"):
        text_classification.main([*SMALL, *options, "--max-length=97"])
    text_classification.main([*SMALL, *options, f"--max-length={longest}"])


def test_a_file_is_no_superglue(text_classification, bert, table):
    options = ["--tasks=boolq", f"--data={table('a.csv')}", f"--model={bert}"]
    with pytest.raises(CommandError, match=r"--data: expected a folder or a hub name, .*; got .*a\.csv, a file"):
        text_classification.main([*SMALL, *options])


def test_choices_are_scored_side_by_side(text_classification, bert):
    torch.manual_seed(0)
    model = text_classification.Classifier(text_classification.load_encoder(bert), {"copa": 1, "rte": 2}, "first")
    model.eval()
    sample = text_classification.Sample([("a", "b"), ("a", "c")], 1)
    samples = text_classification.Samples([sample], tiny_models.tiny_tokenizer(), 16)
    batch = samples.batch([0], "copa")
    states = model.encoder(**{k: v for k, v in batch.items() if k not in ("labels", "task")}).last_hidden_state[:, 0]
    assert torch.allclose(model(batch), model.heads["of_copa"](states).T)
    assert model(batch).shape == (1, 2)
    assert batch["token_type_ids"].sum() > 0


def test_the_mean_of_states_leaves_padding_out(text_classification, bert):
    model = text_classification.Classifier(text_classification.load_encoder(bert), {"t": 2}, "mean").eval()
    tokenizer = tiny_models.tiny_tokenizer()
    sample = [text_classification.Sample([(text, None)], 0) for text in ("ab", "much longer")]
    samples = text_classification.Samples(sample, tokenizer, 16)
    alone, both = samples.batch([0], "t"), samples.batch([0, 1], "t")
    assert alone["input_ids"].shape[1] < both["input_ids"].shape[1]
    assert torch.allclose(model(alone)[0], model(both)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--tasks", "cb", "rte", "wic"], "expected a multiple of the 3 tasks, which give equally many; got 4"),
        (["--train", "a.csv", "b/a.csv"], "expected tasks with different names; got a, a"),
        (["--train", "a.csv", "--validation", "b.csv", "c.csv"], "--validation: expected one for each of --train"),
        (["--tasks", "cb", "--between-tasks"], "--between-tasks: expected several tasks"),
        (["--tasks", "cb", "rte", "--between-tasks", "--method=sam"], "no method but plain and gradalign"),
        ([], "one of the arguments --tasks --train is required"),
    ],
)
def test_options_that_do_not_fit_are_refused(text_classification, capsys, argv, words):
    with pytest.raises(SystemExit):
        text_classification.parse([*SMALL, *argv])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "validation", "words"),
    [
        ("text,label\na,1\nb,2\n", "text,label\na,3\n", r"got \['1', '2'\] and, in the second alone, \['3'\]"),
        ("text,label\na,1\nb,1\n", "text,label\na,1\n", "expected the same two or more classes"),
        ("text,class\na,1\n", "text,label\na,1\n", "expected the columns text, label; got text, class"),
    ],
)
def test_tables_that_do_not_fit_are_refused(text_classification, bert, tmp_path, train, validation, words):
    for name, content in (("a.csv", train), ("b.csv", validation)):
        (tmp_path / name).write_text(content)
    options = [f"--train={tmp_path / 'a.csv'}", f"--validation={tmp_path / 'b.csv'}", f"--model={bert}"]
    with pytest.raises(CommandError, match=words):
        text_classification.main([*SMALL, *options])
