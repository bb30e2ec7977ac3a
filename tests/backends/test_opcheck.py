"""The registered ops as PyTorch sees them: schemas, fakes, torch.compile without a graph break."""

from __future__ import annotations

import pytest
import torch
from support.kernel_cases import copies

from gradalign import ops

SCALE = torch.tensor(0.5)


def fresh(count: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(s, generator=generator).abs() for s in ((3,), (4, 5))] for _ in range(count)]


def steps() -> list[torch.Tensor]:
    return [torch.zeros(()), torch.ones(())]


def cases() -> dict[str, tuple[tuple, dict]]:
    """Arguments for every op, in memory of their own."""
    a, b, c, d, e = fresh(5)
    scalars = (SCALE, torch.tensor(0.01), torch.tensor(0.1))
    adam = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
    return {
        "norm_dot": ((a, b), {}),
        "perturb_": ((a, b, c, SCALE, d, SCALE), {}),
        "restore_": ((a, b), {}),
        "swap_": ((a, b), {}),
        "accumulate_": ((a, b, SCALE), {}),
        "combine_": ((a, b, c, SCALE, SCALE), {}),
        "adamw_step_": ((a, b, c, d, [], e, steps(), *scalars, SCALE - 0.5, None), {**adam, "zero_grads": True}),
        "sgd_step_": ((a, b, c, [], steps(), *scalars, None, None), {"momentum": 0.9}),
        "lamb_step_": ((a, b, c, d, [], steps(), *scalars, None, None), adam),
    }


NAMES = sorted(ops.SCHEMAS)


def test_every_op_has_a_case():
    assert sorted(cases()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    args, kwargs = cases()[name]
    result = torch.library.opcheck(getattr(torch.ops.gradalign, name).default, args, kwargs)
    assert set(result.values()) == {"SUCCESS"}


def flat(args) -> list[torch.Tensor]:
    return [t for a in args for t in (a if isinstance(a, list) else [a]) if isinstance(t, torch.Tensor)]


def run_compiled(name: str, compiler: str) -> None:
    (args, kwargs), (expected_args, _) = cases()[name], cases()[name]
    op = getattr(torch.ops.gradalign, name)

    def twice(args):
        first = op(*args, **kwargs)
        second = op(*args, **kwargs)
        return first if first is None else first + second

    torch._dynamo.reset()
    before = copies(flat(args))
    actual = torch.compile(twice, fullgraph=True, backend=compiler)(args)
    expected = twice(expected_args)
    if expected is not None:
        torch.testing.assert_close(actual, expected)
    for i, (a, e) in enumerate(zip(flat(args), flat(expected_args), strict=True)):
        torch.testing.assert_close(a, e, msg=lambda text, i=i: f"argument {i}: {text}")
    changed = any(not torch.equal(a, b) for a, b in zip(flat(args), before, strict=True))
    assert changed == (name not in ("norm_dot", "swap_"))  # swapped twice


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_graph_break(name):
    run_compiled(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_compiles_with_inductor(name):
    run_compiled(name, "inductor")
