"""What a displaced pass noted is taken back, and what it did not touch is left alone."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from gradalign.integrations.bookkeeping import taken_back


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
