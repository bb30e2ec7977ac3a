from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import pytest
import torch
from support.gradients import assert_close, grads
from torch import nn

import gradalign
from gradalign import GradAlign, chunk
from gradalign.batches import shallow_copy

Pair = namedtuple("Pair", "x y")


def test_nested_structures_are_split_like_tensor_split():
    x, y = torch.arange(10).view(5, 2), torch.arange(5)
    batch = {"x": x, "more": [Pair(x, y), (y, {"z": y})], "flag": True, "none": None, "scalar": torch.tensor(3.0)}
    parts = chunk(batch, 2)
    for part, xs, ys in zip(parts, x.tensor_split(2), y.tensor_split(2), strict=True):
        assert torch.equal(part["x"], xs)
        assert isinstance(part["more"][0], Pair)
        assert torch.equal(part["more"][0].y, ys)
        assert torch.equal(part["more"][1][1]["z"], ys)
        assert (part["flag"], part["none"], float(part["scalar"])) == (True, None, 3.0)
    assert torch.equal(batch["x"], x)


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType])
def test_mappings_keep_their_type(kind):
    parts = chunk(kind({"x": torch.zeros(4, 1)}), 2)
    assert [type(part) for part in parts] == [kind, kind]
    assert [part["x"].shape[0] for part in parts] == [2, 2]


def test_a_batch_encoding_keeps_its_type():
    transformers = pytest.importorskip("transformers")
    parts = chunk(transformers.BatchEncoding({"input_ids": torch.zeros(4, 3), "mask": torch.zeros(4, 3)}), 2)
    assert [type(part) for part in parts] == [transformers.BatchEncoding] * 2
    assert parts[1]["input_ids"].shape == (2, 3)
    copied = shallow_copy(parts[0])
    copied.pop("mask")
    assert "mask" in parts[0]


def test_parts_are_views():
    x = torch.zeros(4)
    chunk(x, 2)[1].add_(1)
    assert x.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("batch", "k", "error", "message"),
    [
        (torch.zeros(3), 4, ValueError, "chunk: expected at least k = 4 rows; got 3"),
        ({"x": torch.zeros(3), "y": torch.zeros(4)}, 2, ValueError, r"one common number of rows; got \[3, 4\]"),
        ({"x": 3}, 2, ValueError, "got no tensor"),
        (torch.zeros(3), 0, ValueError, "k: expected an integer of at least 1; got 0"),
        (torch.zeros(3), 1.5, TypeError, "k: expected an integer"),
    ],
)
def test_batches_that_cannot_be_split_are_refused(batch, k, error, message):
    with pytest.raises(error, match=message):
        chunk(batch, k)


def test_only_mutable_containers_are_copied():
    tensor = torch.zeros(2)
    for same in (tensor, (1, 2), "text", None):
        assert shallow_copy(same) is same
    given = [tensor]
    assert shallow_copy(given) is not given
    assert shallow_copy(given)[0] is tensor


def test_a_list_of_samples_is_refused():
    images = list(torch.randn(8, 3, 5, 5))
    with pytest.raises(ValueError, match=r"list of 8 tensors of shape \(3, 5, 5\).*torch\.stack\(batch\)"):
        chunk({"images": images}, 3)
    assert [len(part) for part in chunk(torch.stack(images), 3)] == [3, 3, 2]
    columns = chunk(list(torch.randn(2, 8, 5)), 4)
    assert [t.shape for t in columns[0]] == [(2, 5), (2, 5)]
    assert len(chunk(tuple(images), 3)[0]) == 8


X = torch.randn(6, 4)


@pytest.mark.parametrize(
    "samples",
    [
        [{"x": x, "y": 1} for x in X],
        [UserDict(x=x) for x in X],
        [(x, i) for i, x in enumerate(X)],
        [[x, torch.tensor(0)] for x in X],
        [Pair(x, x) for x in X],
    ],
)
def test_uncollated_samples_are_refused(samples):
    with pytest.raises(
        ValueError, match=r"a list of 6 \w+s that .*; collate first, or .*\[samples\[i::k\] for i in range\(k\)\]"
    ):
        chunk(samples, 2)


@pytest.mark.parametrize(
    "batch",
    [
        (X, (X, X)),
        [X, (X, X)],
        [{"x": X}],
        [{"x": X}, {"y": X}],
        [(X, X[:, 0]), (X[:, 0], X)],
        ({"x": X}, {"x": X}),
        ((X, X), (X, X)),
        {"states": [(X, X), (X, X)]},
    ],
)
def test_nested_batches_are_no_samples(batch):
    assert len(chunk(batch, 3)) == 3


def test_arrays_that_would_not_be_cut_are_refused():
    numpy = pytest.importorskip("numpy")
    for batch in ({"x": X, "y": numpy.zeros(6)}, [numpy.zeros((6, 2))]):
        with pytest.raises(TypeError, match=r"got a NumPy array of shape \(6,.*torch\.from_numpy"):
            chunk(batch, 2)
    assert len(chunk({"x": X, "names": numpy.zeros(3), "scale": numpy.float64(2)}, 2)) == 2


def test_a_chunked_batch_trains_like_its_micro_batches():
    model = nn.Linear(6, 1).double()
    x = torch.randn(16, 6, dtype=torch.float64)
    aligner = GradAlign(model, 0.1)
    aligner.backward(lambda part: model(part["x"]).square().mean(), gradalign.chunk({"x": x}, 8))
    expected = grads(model)
    model.zero_grad()
    aligner.backward(lambda part: model(part).square().mean(), list(x.view(8, 2, 6)))
    assert_close(grads(model), expected, rtol=0)


@pytest.mark.parametrize("kind", ["sparse", "nested"])
def test_tensors_that_cannot_be_cut_are_named(kind):
    made = {
        "sparse": lambda: torch.eye(8).to_sparse(),
        "nested": lambda: torch.nested.nested_tensor([torch.randn(2), torch.randn(3)], layout=torch.jagged),
    }
    with pytest.raises(TypeError, match="chunk: expected dense tensors; got"):
        gradalign.chunk({"x": made[kind](), "y": torch.zeros(8)}, 2)
