"""The one look at lists that agree comes to the same as looking at every tensor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradalign import ops
from gradalign.backends import op_validation, rows

HALF = torch.tensor(0.5)

pytestmark = pytest.mark.skipif(rows.reader() is None, reason="gradalign._C is not there")


def verdict(mutated, read) -> str:
    """The words of the refusal, or nothing."""
    try:
        op_validation.tensor_lists("op_", mutated, read)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@st.composite
def views(draw) -> torch.Tensor:
    """Of one memory of 64 elements, which the test fills in."""
    kind = draw(
        st.sampled_from(["flat"] * 4 + ["turned", "strided", "expanded", "windows", "integers", "double", "own"])
    )
    start, size = draw(st.integers(0, 48)), draw(st.sampled_from([0, 1, 4, 4, 4, 6]))
    return kind, start, size


def made(base: torch.Tensor, kind: str, start: int, size: int) -> torch.Tensor:
    flat = base[start : start + size]
    return {
        "flat": lambda: flat,
        "turned": lambda: flat.view(2, -1).t() if size % 2 == 0 and size else flat,
        "strided": lambda: base[start : start + 2 * size : 2],
        "windows": lambda: base[start:].as_strided((2, size), (max(size // 2, 1), 1)),
        "expanded": lambda: base[start : start + 1].expand(size),
        "integers": lambda: base.view(torch.int32)[start : start + size],
        "double": lambda: base[: 2 * (start // 2) + 0].view(torch.float64)[:size],
        "own": lambda: torch.zeros(size),
    }[kind]()


@settings(max_examples=300, deadline=None)
@given(
    lists=st.lists(st.lists(views(), min_size=1, max_size=3), min_size=2, max_size=3),
    again=st.booleans(),
    num_mutated=st.integers(0, 2),
)
def test_one_look_refuses_what_the_long_way_refuses(lists, again, num_mutated):
    base = torch.zeros(64)
    tensors = [[made(base, *view) for view in each] for each in lists]
    if again:
        tensors[-1] = tensors[0]
    named = {f"list{i}": each for i, each in enumerate(tensors)}
    mutated = dict(list(named.items())[:num_mutated])
    read = {name: each for name, each in named.items() if name not in mutated}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op_validation, "_agree", lambda lists, num_mutated: False)
        expected = verdict(mutated, read)
    assert verdict(mutated, read) == expected


GOOD = {
    "apart": lambda a, b: ([a], [b]),
    "in place": lambda a, b: ([a, b], [a, b]),
    "nothing in it": lambda a, b: ([a[:0]], [b[:0]]),
    "turned": lambda a, b: ([a.view(2, 3).t()], [b.view(3, 2)]),
    "with gaps": lambda a, b: ([a.as_strided((2, 2), (3, 2))], [b[:4].view(2, 2)]),
}


@pytest.mark.parametrize("case", GOOD)
def test_lists_that_agree_take_one_look(case, monkeypatch):
    monkeypatch.setattr(op_validation, "_no_overlap", None)  # the long way would fail
    written, read = GOOD[case](torch.zeros(6), torch.ones(6))
    op_validation.tensor_lists("op_", {"written": written}, {"read": read})


BAD = {
    "length": lambda x: ([x], []),
    "shapes": lambda x: ([x], [torch.ones(3, 2)]),
    "integers": lambda x: ([x], [torch.ones(2, 3, dtype=torch.int32)]),
    "devices": lambda x: ([x], [torch.ones(2, 3, device="meta")]),
    "windows": lambda x: ([torch.ones(12).as_strided((2, 3), (2, 1))], [x]),
    "an expanded one": lambda x: ([torch.ones(1).expand(2, 3)], [x]),
    "overlap": lambda x: ([x.view(6)[:5]], [x.view(6)[1:]]),
    "shifted in its list": lambda x: ([x[0], x[1]], [x[1], x[0]]),
    "written twice": lambda x: ([x, x], [torch.ones(2, 3), torch.ones(2, 3)]),
    "another dtype at the same place": lambda x: (
        [x],
        [x.view(torch.int32).view(torch.float32).view(torch.bfloat16)[:, ::2]],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_lists_that_do_not_agree_are_refused_before_anything_is_written(case):
    x = torch.ones(2, 3)
    accs, grads = BAD[case](x)
    with pytest.raises((TypeError, ValueError), match=r"accumulate_: expected"):
        ops.accumulate_(accs, grads, HALF)
    assert x.eq(1).all()
