"""What every schedule inherits: all micro-batches are visited in order, unless it needs all of them at once."""

from __future__ import annotations

import pytest

from gradalign.engine.schedule import Schedule


class Visiting(Schedule):
    def visit(self, closure):
        return closure()

    def finish(self):
        return {}


class AllAtOnce(Schedule):
    needs_all = True

    def finish(self):
        return {}


def test_all_micro_batches_are_visited_in_order():
    seen = []
    closures = [lambda i=i: seen.append(i) or 10 * i for i in range(3)]
    assert Visiting(step=None).run(closures) == [0, 10, 20]
    assert seen == [0, 1, 2]


def test_one_that_needs_all_cannot_visit_one():
    with pytest.raises(AssertionError, match="AllAtOnce needs all micro-batches at once"):
        AllAtOnce(step=None).visit(lambda: None)
