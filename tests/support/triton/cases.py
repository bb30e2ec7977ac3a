"""Every op of the table in DESIGN, in every dtype and variant that compiles to different code.

`read` and `written` name the lists that the table counts: the bytes per element of a full block are theirs, exactly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

from gradalign.kernels.accumulate import accumulate_block
from gradalign.kernels.adamw_step import adamw_step_block
from gradalign.kernels.combine import combine_block
from gradalign.kernels.lamb_step import lamb_moments_block, lamb_update_block
from gradalign.kernels.norm_dot import norm_dot_block
from gradalign.kernels.perturb import perturb_block
from gradalign.kernels.restore import restore_block
from gradalign.kernels.sgd_step import sgd_step_block
from gradalign.kernels.swap import swap_block
from support.triton.assembly import Assembly, Case, compiled

F32, BF16, F16 = tl.float32, tl.bfloat16, tl.float16
F32_SCALAR, F64_SCALAR = "*fp32", "*fp64"
FLAGS = ("*i32", "*i32")  # of a step: kept, key
NO, YES = False, True


class Row(NamedTuple):
    """A case, and which of its lists the table says are read and written."""

    name: str
    case: Case
    read: tuple[int, ...]
    written: tuple[int, ...]


def dtype_names(dtypes: tuple[Any, ...]) -> str:
    """For the name of a test."""
    return "-".join(str(d) for d in dtypes)


def vector_rows(d: Any) -> list[Row]:
    """The vector ops with every list in one dtype."""
    three = {"num_sums": 3}
    return [
        Row("norm", Case(norm_dot_block, (d,), num_sums=1), (0,), ()),
        Row("norm_dot", Case(norm_dot_block, (d, d), **three), (0, 1), ()),
        Row("perturb", Case(perturb_block, (d,) * 3, (F64_SCALAR,), options=(NO,), **three), (0, 2), (0, 1)),
        Row(
            "perturb_two",
            Case(perturb_block, (d,) * 4, (F32_SCALAR, F64_SCALAR), options=(NO,), **three),
            (0, 2, 3),
            (0, 1),
        ),
        Row("restore", Case(restore_block, (d, d)), (1,), (0,)),
        Row("swap", Case(swap_block, (d, d)), (0, 1), (0, 1)),
        Row("accumulate", Case(accumulate_block, (d, d), (F32_SCALAR,), num_sums=2), (0, 1), (0,)),
        Row("combine", Case(combine_block, (d,) * 3, (F32_SCALAR, F64_SCALAR), num_sums=1), (1, 2), (0,)),
    ]


def mixed_rows() -> list[Row]:
    """The vector ops where lists differ in dtype: float32 accumulators and masters of bfloat16."""
    from_backups = Case(perturb_block, (BF16, F32, F32), (F32_SCALAR,), options=(YES,), num_sums=3)
    return [
        Row("norm_dot", Case(norm_dot_block, (F32, BF16), num_sums=3), (0, 1), ()),
        Row(
            "perturb", Case(perturb_block, (BF16, BF16, F32), (F32_SCALAR,), options=(NO,), num_sums=3), (0, 2), (0, 1)
        ),
        Row("perturb_from_backups", from_backups, (1, 2), (0,)),
        Row("restore", Case(restore_block, (BF16, F32)), (1,), (0,)),
        Row("accumulate", Case(accumulate_block, (F32, BF16), (F32_SCALAR,), num_sums=2), (0, 1), (0,)),
        Row("combine", Case(combine_block, (F32, BF16, F32), (F32_SCALAR, F32_SCALAR), num_sums=1), (1, 2), (0,)),
    ]


def adamw(name: str, dtypes: tuple[Any, ...], master: bool = NO, stochastic: bool = NO, decoupled: bool = YES) -> Row:
    """params, grads, (masters,) moments: with a master the parameter is written only."""
    lists = tuple(range(len(dtypes)))
    options = (master, stochastic, NO, NO, decoupled)
    case = Case(adamw_step_block, dtypes, (F32_SCALAR, F64_SCALAR), (*FLAGS, *(F32_SCALAR,) * 3), 4, options)
    return Row(name, case, lists[1 if master else 0 :], (0, *lists[2:]))


def sgd(name: str, dtypes: tuple[Any, ...], master: bool = NO, stochastic: bool = NO) -> Row:
    """params, grads, (masters,) buffers."""
    lists = tuple(range(len(dtypes)))
    options = (master, stochastic, NO, NO, YES)
    case = Case(sgd_step_block, dtypes, (F32_SCALAR, F64_SCALAR, F64_SCALAR), (*FLAGS, F32_SCALAR), 2, options)
    return Row(name, case, lists[1 if master else 0 :], (0, *lists[2:]))


def lamb(p: Any, g: Any, s: Any, master: Any = None, stochastic: bool = NO) -> list[Row]:
    """7 reads and 3 writes: (grads, moments, thetas), then (params, exp_avgs, (masters,) exp_avg_sqs)."""
    scalars, vectors = (F32_SCALAR, F64_SCALAR), (*FLAGS, F32_SCALAR, F32_SCALAR)
    first = Case(lamb_moments_block, (g, s, s, master or p), scalars, vectors, 4, (NO, NO), 2)
    lists = (p, s, *([master] if master else []), s)
    options = (master is not None, stochastic, YES)
    second = Case(lamb_update_block, lists, scalars, (*vectors, F64_SCALAR, F64_SCALAR), 1, options)
    places = tuple(range(len(lists)))
    return [
        Row("lamb_moments", first, (0, 1, 2, 3), (1, 2)),
        Row("lamb_update", second, places[1 if master else 0 :], (0, 2) if master else (0,)),
    ]


def step_rows(d: Any) -> list[Row]:
    """The optimizer steps with everything in one dtype."""
    return [
        adamw("adamw", (d,) * 4),
        adamw("adamw_amsgrad_coupled", (d,) * 5, decoupled=NO),
        sgd("sgd", (d, d)),
        sgd("sgd_momentum", (d,) * 3),
        *lamb(d, d, d),
    ]


def mixed_step_rows() -> list[Row]:
    """With float32 state, float32 masters, stochastic rounding."""
    return [
        adamw("adamw_states", (BF16, BF16, F32, F32)),
        adamw("adamw_masters", (BF16, BF16, F32, F32, F32), master=YES),
        adamw("adamw_amsgrad_masters", (F16, F16, F32, F32, F32, F32), master=YES, decoupled=NO),
        adamw("adamw_stochastic", (BF16,) * 4, stochastic=YES),
        adamw("adamw_stochastic_states", (BF16, BF16, F32, F32), stochastic=YES),
        sgd("sgd_masters", (BF16, BF16, F32, F32), master=YES),
        sgd("sgd_stochastic", (BF16,) * 3, stochastic=YES),
        *lamb(BF16, BF16, F32, master=F32),
        *lamb(BF16, BF16, BF16, stochastic=YES),
    ]


ROWS = [
    *(row for d in (F32, BF16, F16) for row in (*vector_rows(d), *step_rows(d))),
    *mixed_rows(),
    *mixed_step_rows(),
]


def compiled_row(place: tuple[int, str]) -> Assembly:
    """The row of that number for a target. Here, since processes that are spawned cannot import a test file."""
    row, target = place
    return compiled(ROWS[row].case, target)
