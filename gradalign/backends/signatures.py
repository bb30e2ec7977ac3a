"""The signature of every op, written down once.

`SCHEMAS` is the table from which Python defines two namespaces: `gradalign`, the public ops of `gradalign.ops`, and
`gradalign_native`, which `csrc/` implements. The schema of an optimizer step is made from its class of options below.

A backend has one function for each of `VECTOR_OPS`, with the arguments of its schema, and one `step_` for all optimizers:

    step_(tensors: StepTensors, scalars: StepScalars, options: StepOptions) -> None

`tests/backends/test_signatures.py` compares the table with the public functions, the backends and the C++.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


class StepTensors(NamedTuple):
    """The lists of an optimizer step, one tensor per parameter in each; see `gradalign.ops.adamw_step_`.

    Attributes:
        params: written.
        grads: written only with `zero_grads`.
        states: the lists that `StepOptions.states` names; a list that is not used is empty.
        masters: float32 copies of the parameters, or empty.
        steps: 0-dim tensors, how many steps were made.
    """

    params: Tensors
    grads: Tensors
    states: tuple[Tensors, ...]
    masters: Tensors
    steps: Tensors

    def in_order(self) -> tuple[Tensors, ...]:
        """The lists in the order of the schema."""
        return (self.params, self.grads, *self.states, self.masters, self.steps)


class StepScalars(NamedTuple):
    """The 0-dim tensors of an optimizer step, on the device of the lists; see `gradalign.ops.adamw_step_`."""

    grad_scale: Tensor
    lr: Tensor
    weight_decay: Tensor
    skip: Tensor | None = None
    seed: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """The numbers and flags of an optimizer step; a subclass for each optimizer.

    Attributes:
        op: the name of the op.
        states: the names of its lists of state.
        maximize: go up instead of down.
        zero_grads: write zeros into the gradients.
    """

    op: ClassVar[str]
    states: ClassVar[tuple[str, ...]]

    maximize: bool = False
    zero_grads: bool = False

    @property
    def required_states(self) -> tuple[str, ...]:
        """Those of `states` that may not be empty."""
        return self.states

    @classmethod
    def schema(cls) -> str:
        """The schema of the op."""
        written = ("params", "grads", *cls.states, "masters", "steps")
        lists = [f"Tensor({chr(ord('a') + i)}!)[] {name}" for i, name in enumerate(written)]
        optional = StepScalars._field_defaults
        scalars = [f"Tensor? {n}=None" if n in optional else f"Tensor {n}" for n in StepScalars._fields]
        shared = fields(StepOptions)
        own = [f for f in fields(cls) if f.name not in {s.name for s in shared}]
        options = [f"{f.type} {f.name}" + ("" if f.default is MISSING else f"={f.default}") for f in (*own, *shared)]
        return f"({', '.join((*lists, *scalars, '*', *options))}) -> ()"


@dataclass(frozen=True, kw_only=True)
class AdamWOptions(StepOptions):
    """Of `gradalign.ops.adamw_step_`."""

    op = "adamw_step_"
    states = ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")

    beta1: float
    beta2: float
    eps: float
    decoupled: bool = True

    @property
    def required_states(self) -> tuple[str, ...]:
        """The largest second moments are there for AMSGrad only."""
        return ("exp_avgs", "exp_avg_sqs")


@dataclass(frozen=True, kw_only=True)
class SGDOptions(StepOptions):
    """Of `gradalign.ops.sgd_step_`."""

    op = "sgd_step_"
    states = ("momentum_buffers",)

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False

    @property
    def required_states(self) -> tuple[str, ...]:
        """The buffers are not needed without momentum."""
        return self.states if self.momentum else ()


@dataclass(frozen=True, kw_only=True)
class LAMBOptions(StepOptions):
    """Of `gradalign.ops.lamb_step_`."""

    op = "lamb_step_"
    states = ("exp_avgs", "exp_avg_sqs")

    beta1: float
    beta2: float
    eps: float
    trust: bool = True


VECTOR_OPS = {
    "norm_dot": "(Tensor[] xs, Tensor[]? ys=None) -> Tensor",
    "perturb_": "(Tensor(a!)[] params, Tensor(b!)[] backups, Tensor[] xs, Tensor scale, Tensor[]? ys=None, "
    "Tensor? scale_y=None, bool from_backups=False) -> Tensor",
    "restore_": "(Tensor(a!)[] params, Tensor[] backups) -> ()",
    "swap_": "(Tensor(a!)[] params, Tensor(b!)[] backups) -> ()",
    "accumulate_": "(Tensor(a!)[] accs, Tensor[] grads, Tensor scale) -> Tensor",
    "combine_": "(Tensor(a!)[] outs, Tensor[] xs, Tensor[] ys, Tensor a, Tensor b) -> Tensor",
}
# How many float64 sums an op returns.
NUM_SUMS = {"norm_dot": 3, "perturb_": 3, "accumulate_": 2, "combine_": 1}

STEPS: dict[str, type[StepOptions]] = {kind.op: kind for kind in (AdamWOptions, SGDOptions, LAMBOptions)}

SCHEMAS = {**VECTOR_OPS, **{op: kind.schema() for op, kind in STEPS.items()}}

# On single numbers, behind the native backend only: what an objective makes of sums of products, see `reference_scalars`.
SCALAR_OPS = {
    "aim": "(Tensor sums, Tensor scale_x, Tensor own, float radius, float alpha, float beta, float part, bool unit, "
    "bool others, float rounding) -> Tensor",
    "reached": "(Tensor sums, Tensor aimed, bool direction) -> Tensor",
}

PUBLIC = "gradalign"
NATIVE = "gradalign_native"  # this and every other namespace is implemented in csrc/


@functools.cache
def define(namespace: str) -> torch.library.Library:
    """Define every op in a namespace, with its fake and without an implementation.

    Returns:
        The library that owns the definitions; they last as long as it does, and the cache keeps it.
    """
    library = torch.library.Library(namespace, "FRAGMENT")
    for op, schema in SCHEMAS.items():
        if namespace != PUBLIC:
            schema = native_schema(schema)
            library.define(f"{op}.rows{rows_schema(schema)}")
        library.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.register_fake(f"{namespace}::{op}", functools.partial(_fake, op), lib=library)
    if namespace == NATIVE:
        library.define("cpu_isa() -> str")
    if namespace != PUBLIC:
        for op, schema in SCALAR_OPS.items():
            library.define(op + schema)
    return library


def native_schema(schema: str) -> str:
    """The schema in `csrc/`, where a list that is not given is empty.

    torch does not look into an optional list for tensors that it has to resolve before a kernel reads them (negative bits,
    tensors that stand for zeros, fakes).
    """
    return schema.replace("Tensor[]? ys=None", "Tensor[] ys")


def rows_schema(schema: str) -> str:
    """The schema of the overload that takes the lists as rows, see `gradalign.backends.rows`.

    `like` is a tensor of the device, which torch chooses the implementation by. The overload has no fake and says nothing of
    what it writes: it is called on real tensors only, where nothing traces.
    """
    arguments, result = schema[1:].split(") -> ")
    others = [argument for argument in arguments.split(", ") if "[]" not in argument]
    return f"({', '.join(['Tensor like', 'Tensor rows', *others])}) -> {result}"


def _fake(op: str, first: Tensors, *args: object, **kwargs: object) -> Tensor | None:
    """What the op returns, given tensors without values (fake ones, or of the device "meta")."""
    lists = [first, *(a for a in (*args, *kwargs.values()) if isinstance(a, (list, tuple)))]
    devices = {t.device for tensors in lists for t in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"{op}: expected tensors of one device; got {sorted(map(str, devices))}; call it once a device"
        )
    return sums(op, torch.empty, first)


def sums(op: str, make: Callable[..., Tensor], first: Tensors) -> Tensor | None:
    """What the op returns, made by `make`: a float64 tensor on the device of its first list; None for most ops."""
    if op not in NUM_SUMS:
        return None
    return make(NUM_SUMS[op], dtype=torch.float64, device=first[0].device if first else torch.device("cpu"))


def call(backend: ModuleType, op: str, *args: Any, **kwargs: Any) -> Tensor | None:
    """Run an op of a backend, given the arguments of its schema."""
    if op in STEPS:
        return backend.step_(*step_records(op, args, kwargs))
    return getattr(backend, op)(*args, **kwargs)


def step_records(op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[StepTensors, StepScalars, StepOptions]:
    """The records of an optimizer step, from the arguments of its schema."""
    kind = STEPS[op]
    params, grads, *rest = args
    states, (masters, steps, *scalars) = rest[: len(kind.states)], rest[len(kind.states) :]
    named = {name: value for name, value in kwargs.items() if name in StepScalars._fields}
    options = {name: value for name, value in kwargs.items() if name not in named}
    return (
        StepTensors(params, grads, tuple(states), masters, steps),
        StepScalars(*scalars, **named),
        kind(**options),
    )
