"""Every copy of an op's signature agrees with the table in `gradalign.backends.signatures`."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.signature_readers import PYTHON, of_cpp, of_function, of_schema, of_source

import gradalign
from gradalign import ops
from gradalign.backends import native, reference, reference_steps, signatures, triton
from gradalign.backends.signatures import (
    SCALAR_OPS,
    SCHEMAS,
    STEPS,
    VECTOR_OPS,
    StepScalars,
    StepTensors,
    native_schema,
)
from gradalign.extension import library

KERNELS = Path(gradalign.__file__).parents[1] / "kernels"  # beside the package in a checkout
if not KERNELS.is_dir():
    KERNELS = Path(gradalign.__file__).parent / "kernels"
CPP = {
    "cpu": ("cpu/vector_ops.h", "cpu/step_ops.h", "cpu/scalar_ops.h"),
    "cuda": ("cuda/ops.h", "cuda/scalar_ops.h"),
}

each_op = pytest.mark.parametrize("op", SCHEMAS)
each_vector_op = pytest.mark.parametrize("op", VECTOR_OPS)
each_step = pytest.mark.parametrize("op", STEPS)


def table(op):
    return of_schema(op, SCHEMAS[op])


def cpp_text(device):
    return "\n".join((library.sources() / name).read_text() for name in CPP[device])


@each_op
def test_the_public_function(op):
    assert of_function(getattr(ops, op)) == table(op)


@each_vector_op
@pytest.mark.parametrize("backend", [reference, native], ids=["reference", "native"])
def test_the_vector_ops_of_a_backend(backend, op):
    assert of_function(getattr(backend, op)) == table(op)


@each_vector_op
def test_the_vector_ops_of_triton(op):
    found = of_source((KERNELS / f"{op.rstrip('_')}.py").read_text(), op)
    arguments, returns = table(op).names_and_types()
    assert [(name, PYTHON[kind]) for name, kind in found.items() if name != "return"] == arguments
    assert found["return"] == returns


@pytest.mark.parametrize("backend", [reference, native, triton], ids=["reference", "native", "triton"])
def test_the_step_of_a_backend(backend):
    assert backend.step_.__annotations__ == {
        "tensors": "StepTensors",
        "scalars": "StepScalars",
        "options": "StepOptions",
        "return": "None",
    }


@each_step
def test_the_step_functions_behind_it(op):
    expected = {"tensors": "StepTensors", "scalars": "StepScalars", "options": STEPS[op].__name__, "return": "None"}
    assert of_source((KERNELS / f"{op.rstrip('_')}.py").read_text(), op) == expected
    assert reference_steps.STEPS[op].__annotations__ == expected


@each_op
@pytest.mark.parametrize("device", CPP)
def test_the_cpp_function(device, op):
    found = of_cpp(cpp_text(device), f"{op.rstrip('_')}_{device}")
    assert found.names_and_types() == of_schema(op, native_schema(SCHEMAS[op])).names_and_types()


@pytest.mark.parametrize("op", SCALAR_OPS)
def test_the_ops_on_single_numbers(op):
    expected = of_schema(op, SCALAR_OPS[op]).names_and_types()
    for backend in (reference, native, triton):
        assert of_function(getattr(backend, op)).names_and_types() == expected
    for device in CPP:
        assert of_cpp(cpp_text(device), f"{op}_{device}").names_and_types() == expected


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("double momentum, double dampening", "double dampening, double momentum"),
        ("bool nesterov,", "double nesterov,"),
        ("const std::optional<Tensor>& seed, double momentum", "const Tensor& seed, double momentum"),
        ("const std::optional<Tensor>& seed, double momentum", "double momentum"),
    ],
    ids=["order", "type", "optional", "missing"],
)
def test_a_cpp_function_that_disagrees_is_noticed(there, instead):
    text = " ".join(cpp_text("cpu").split())
    assert there in text
    changed = of_cpp(text.replace(there, instead), "sgd_step_cpu")
    assert changed.names_and_types() != table("sgd_step_").names_and_types()


def test_the_cpp_registers_every_op():
    text = (library.sources() / "tensor" / "register.h").read_text()
    found = dict(re.findall(r'GRADALIGN_IMPL\(m, "(\w+)", (\w+)_##device\)', text))
    assert found == {op: op.rstrip("_") for op in SCHEMAS}
    found = re.findall(r'm\.impl\("(\w+)", TORCH_BOX\(&gradalign::(\w+)_##device\)\)', text)
    assert found == [(op, op) for op in SCALAR_OPS]


@each_op
def test_the_native_namespace(op):
    if native.why_unavailable() is not None:
        pytest.skip(native.why_unavailable())
    public, inner = (
        str(getattr(space, op).default._schema) for space in (torch.ops.gradalign, torch.ops.gradalign_native)
    )
    assert inner.removeprefix("gradalign_native::") == native_schema(public).removeprefix("gradalign::")


@each_step
def test_the_records_take_the_arguments_of_the_schema_to_their_places(op):
    """The records, taken apart in order, are the arguments again."""
    arguments, _ = table(op).names_and_types()
    names = [name for name, _ in arguments]
    own = STEPS[op](**{a.name: 0.25 for a in table(op).arguments if a.keyword_only and a.type == "float"})
    num_positional = len(names) - len(vars(own))
    taken = []
    backend = SimpleNamespace(step_=lambda *records: taken.extend(records))
    signatures.call(backend, op, *names[:num_positional], **vars(own))
    tensors, scalars, options = taken
    assert [*tensors.in_order(), *scalars] == names[:num_positional]
    assert tensors.states == STEPS[op].states
    assert options == own
    assert (type(tensors), type(scalars)) == (StepTensors, StepScalars)
    assert (tensors.params, tensors.masters, scalars.lr, scalars.seed) == ("params", "masters", "lr", "seed")


def test_scalars_may_be_left_out_or_named():
    taken = []
    backend = SimpleNamespace(step_=lambda *records: taken.append(records))
    lists = ("params", "grads", "buffers", "masters", "steps")
    signatures.call(backend, "sgd_step_", *lists, "scale", "lr", "decay")
    signatures.call(backend, "sgd_step_", *lists, "scale", "lr", "decay", seed="seed", momentum=0.5)
    (_, plain, _), (_, named, options) = taken
    assert (plain.skip, plain.seed) == (None, None)
    assert (named.skip, named.seed, options.momentum) == (None, "seed", 0.5)
