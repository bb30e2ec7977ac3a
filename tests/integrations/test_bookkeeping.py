"""What a displaced pass noted is taken back, and what it did not touch is left alone."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from gradalign.integrations import bookkeeping
from gradalign.integrations.bookkeeping import COPIED, ENTERED, taken_back


class Attributes(dict):
    """A dict whose items are attributes, as those of configurations; it has no `update`."""

    __getattr__ = dict.__getitem__
    update = None


CONTAINERS = {
    "Counter": (Counter(batches=16, rows=3), lambda c: c.update(["batches", "new"])),
    "OrderedDict": (OrderedDict(a=1, b=2), lambda c: c.move_to_end("a")),
    "defaultdict": (defaultdict(list, a=[1]), lambda c: c["b"].append(c["a"].append(2))),
    "dict of attributes": (Attributes(a=1), lambda c: c.__setitem__("a", 2)),
    "bounded deque": (deque([1, 2], maxlen=2), lambda c: c.append(3)),
    "set": ({1, 2}, lambda c: c.add(3)),
    "list": ([1, [2]], lambda c: c[1].append(3)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_keep_their_identity_and_get_their_contents_back(kind):
    container, note = CONTAINERS[kind]
    owner, before = SimpleNamespace(noted=container), repr(container)
    for _ in range(3):
        with taken_back(owner):
            note(container)
            assert repr(container) != before
        assert owner.noted is container
        assert repr(container) == before


def test_what_was_not_touched_is_not_written():
    output = BaseModelOutput(last_hidden_state=torch.zeros(2))
    itself = {"a": 1}
    itself["itself"] = itself
    owner = SimpleNamespace(output=output, counts=Counter(a=2), itself=itself)
    with taken_back(owner):
        pass
    assert owner.output is output
    assert owner.counts == Counter(a=2)
    assert itself["itself"] is itself


def test_an_output_that_was_replaced_comes_back():
    first = BaseModelOutput(last_hidden_state=torch.zeros(2))
    owner = SimpleNamespace(output=first, state=object())
    state = owner.state
    with taken_back(owner):
        owner.output = BaseModelOutput(last_hidden_state=torch.ones(2))
        owner.state = torch.ones(2)  # a number in the place of something else
        owner.new = 1
    assert owner.output is first
    assert owner.state is state
    assert not hasattr(owner, "new")


def test_what_is_kept_in_long_containers_is_not_walked(monkeypatch):
    entered = []
    original = bookkeeping._Saving.of
    monkeypatch.setattr(bookkeeping._Saving, "of", lambda *args: entered.append(1) or original(*args))
    rows = [{"text": str(i), "inner": [i]} for i in range(ENTERED + 1)]
    nested = [[{"a": j} for j in range(100)] for _ in range(100)]
    owner = SimpleNamespace(rows=rows, by_name=dict(enumerate(rows)), nested=nested, numbers=list(range(COPIED)))
    with taken_back(owner):
        pass
    assert len(entered) <= 4 + ENTERED + 1


def row_appended(c):
    c.append({"new": 1})


def row_added(c):
    c["new"] = {}


LONG = {
    "list whose elements are kept": (lambda: [{"i": i} for i in range(ENTERED + 1)], lambda c: c.pop(0)),
    "list": (lambda: [{"i": i} for i in range(COPIED + 1)], row_appended),
    "dict": (lambda: {i: {} for i in range(COPIED + 1)}, row_added),
    "OrderedDict": (lambda: OrderedDict((i, {}) for i in range(COPIED + 1)), row_added),
    "bounded deque": (lambda: deque(range(COPIED + 1), maxlen=COPIED + 1), row_appended),
}


@pytest.mark.parametrize("kind", LONG)
def test_long_containers_keep_their_identity_and_lose_what_was_added(kind):
    make, note = LONG[kind]
    container = make()
    owner, before = SimpleNamespace(noted=container), list(container)
    with taken_back(owner):
        note(container)
        assert list(container) != before
    assert owner.noted is container
    assert len(container) == len(before)
    assert all(a is b for a, b in zip(container, before, strict=True))


def test_elements_taken_out_of_a_container_too_long_to_copy_are_named():
    owner = SimpleNamespace(seen=list(range(COPIED + 1)))
    with pytest.raises(RuntimeError, match=f"got 2 of {COPIED + 1} taken out of seen; do it where"), taken_back(owner):
        del owner.seen[-2:]


def appended_to_one(rows):
    rows[1].append(0.5)


def tensor_written(rows):
    rows[ENTERED].fill_(2.0)


def moved_to_another(rows):
    rows[0].append(rows[1].pop())


def test_the_rest_comes_back_after_an_error():
    owner = SimpleNamespace(seen=list(range(COPIED + 1)), counts={"calls": [1]}, num=3)

    def count():
        owner.seen.pop()
        owner.counts["calls"].append(2)
        owner.num, owner.new = 4, 1

    with pytest.raises(RuntimeError, match="taken out of seen"), taken_back(owner):
        count()
    assert owner.counts == {"calls": [1]}
    assert owner.num == 3
    assert not hasattr(owner, "new")


WITHIN = {
    "from one record to another": (lambda: [[i] for i in range(ENTERED + 1)], moved_to_another),
    "record of a dict": (lambda: {i: [] for i in range(ENTERED + 1)}, appended_to_one),
    "tensor of a list": (lambda: [torch.ones(1) for _ in range(ENTERED + 1)], tensor_written),
    "beyond the budget": (lambda: [[[] for _ in range(800)], [[] for _ in range(800)]], lambda c: c[1][-1].append(1)),
}


@pytest.mark.parametrize("kind", WITHIN)
def test_changes_within_what_is_too_much_to_save_are_named(kind):
    make, note = WITHIN[kind]
    owner = SimpleNamespace(history=make())
    with taken_back(owner):
        pass
    with pytest.raises(RuntimeError, match="got a change within history; make it where"), taken_back(owner):
        note(owner.history)


def test_a_long_buffer_that_was_shifted_comes_back():
    buffer = list(range(70_000))
    owner = SimpleNamespace(buffer=buffer)
    with taken_back(owner):
        buffer.pop(0)
        buffer.append(1)
    assert buffer == list(range(70_000))
