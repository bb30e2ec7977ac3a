"""The arguments of an op as its schema, a Python function, a kernel's file and the C++ have them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# How the types of a schema are written in Python and in C++.
PYTHON = {
    "Tensors": "List[Tensor]",
    "Tensors | None": "Optional[List[Tensor]]",
    "Tensor": "Tensor",
    "Tensor | None": "Optional[Tensor]",
    "float": "float",
    "bool": "bool",
}
CPP = {
    "const Tensors&": "List[Tensor]",
    "const std::optional<Tensors>&": "Optional[List[Tensor]]",
    "const Tensor&": "Tensor",
    "const std::optional<Tensor>&": "Optional[Tensor]",
    "double": "float",
    "bool": "bool",
}
NO_DEFAULT = "no default"


class Argument(NamedTuple):
    name: str
    type: str
    default: Any = NO_DEFAULT
    keyword_only: bool = False


class Signature(NamedTuple):
    arguments: list[Argument]
    returns: str

    def names_and_types(self) -> tuple[list[tuple[str, str]], str]:
        return [(a.name, a.type) for a in self.arguments], self.returns


def of_schema(op: str, schema: str) -> Signature:
    parsed = torch._C.parse_schema(f"gradalign::{op}{schema}")
    arguments = [
        Argument(a.name, str(a.type), a.default_value if a.has_default_value() else NO_DEFAULT, a.kwarg_only)
        for a in parsed.arguments
    ]
    return Signature(arguments, "Tensor" if parsed.returns else "None")


def of_function(function: Callable[..., Any]) -> Signature:
    signature = inspect.signature(function)
    arguments = []
    for p in signature.parameters.values():
        default = NO_DEFAULT if p.default is p.empty else p.default
        arguments.append(Argument(p.name, PYTHON[p.annotation], default, p.kind is p.KEYWORD_ONLY))
    return Signature(arguments, signature.return_annotation)


def of_source(text: str, name: str) -> dict[str, str]:
    """Argument to annotation of a function in a file that is not imported, "return" included."""
    (found,) = (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name)
    annotations = {a.arg: a.annotation for a in found.args.args} | {"return": found.returns}
    return {key: "" if value is None else ast.unparse(value) for key, value in annotations.items()}


def of_cpp(text: str, function: str) -> Signature:
    (found,) = re.finditer(rf"inline (Tensor|void) {function}\(([^)]*)\)", text)
    arguments = []
    for parameter in " ".join(found[2].split()).split(", "):
        kind, _, name = parameter.rpartition(" ")
        arguments.append(Argument(name, CPP[kind]))
    return Signature(arguments, "None" if found[1] == "void" else "Tensor")
