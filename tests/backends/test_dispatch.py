"""Which backend runs the ops: a named one or none, "auto" the first that works."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from gradalign import GradAlign
from gradalign.backends import dispatch, native, reference, triton

F32 = frozenset({torch.float32})


def test_a_missing_backend_is_an_error_that_lists_what_is_there():
    with pytest.raises(RuntimeError, match=r'backend "triton": .*available here: .*reference'):
        GradAlign(nn.Linear(2, 1), 0.1, backend="triton")


@pytest.fixture
def fresh():
    """Choices are cached; those that a test makes with changed backends are forgotten after it."""
    dispatch._checked.cache_clear()
    yield dispatch.backend
    dispatch._checked.cache_clear()


def test_a_backend_is_the_module_of_its_name(fresh):
    assert fresh("reference", "cpu", F32).__name__ == "gradalign.backends.reference"
    assert dispatch.load("native").__name__ == "gradalign.backends.native"


def test_auto_takes_the_first_that_works_and_logs_why_not_a_better_one(fresh, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="gradalign")
    monkeypatch.setattr(native, "why_unavailable", lambda: "no compiler")
    monkeypatch.setattr(triton, "why_unavailable", lambda: None)
    monkeypatch.setattr(triton, "supports", lambda device_type, dtypes: False)
    assert fresh("auto", "cpu", F32) is reference
    assert fresh("auto", "cpu", F32) is reference
    assert [record.getMessage() for record in caplog.records] == [
        "backend reference on cpu; not native (no compiler); not triton (does not support torch.float32 on cpu)"
    ]


def test_auto_prefers_native_to_triton_to_reference(fresh, monkeypatch):
    assert dispatch.ORDER == ("native", "triton", "reference")
    for module in (native, triton):
        monkeypatch.setattr(module, "why_unavailable", lambda: None)
        monkeypatch.setattr(module, "supports", lambda device_type, dtypes: True)
    assert fresh("auto", "cpu", F32) is native
    monkeypatch.setattr(native, "supports", lambda device_type, dtypes: False)
    dispatch._checked.cache_clear()
    assert fresh("auto", "cpu", F32) is triton


def test_a_named_backend_never_falls_back(fresh, monkeypatch):
    monkeypatch.setattr(native, "why_unavailable", lambda: "no compiler")
    monkeypatch.setattr(triton, "why_unavailable", lambda: "no GPU")
    with pytest.raises(RuntimeError, match='backend "native": no compiler; available here: reference'):
        fresh("native", "cpu", F32)


def test_an_unknown_name_is_refused(fresh):
    with pytest.raises(
        ValueError, match="backend: expected one of 'auto', 'native', 'reference', 'triton'; got 'cuda'"
    ):
        fresh("cuda", "cpu", F32)
