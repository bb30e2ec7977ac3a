"""What docs/api.md documents is public: its modules list it in `__all__`, and its docstrings say what goes in and comes out."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
DIRECTIVE = re.compile(r"^::: (\S+)\n((?: {4}.*\n)*)", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Examples|References):$", re.MULTILINE)


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what is before the last dot is a class
        return False


def documented():
    """(module, names) for every directive of the page."""
    for name, options in DIRECTIVE.findall(PAGE + "\n"):
        if is_module(name):
            members = re.search(r"^ +members: \[(.*)\]$", options, re.MULTILINE)
            yield name, [] if members is None else re.split(r", *", members[1])
        else:
            module, _, last = name.rpartition(".")
            yield module, [last]


MODULES = sorted({module for module, _ in documented()})


def public(module):
    """A documented module; those of other libraries' trainers need these libraries."""
    if module.startswith("gradalign.integrations."):
        pytest.importorskip(module.rpartition(".")[2])
    return importlib.import_module(module)


def test_the_documented_modules_are_found():
    assert {"gradalign", "gradalign.ops", "gradalign.optim", "gradalign.integrations.accelerate"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_documented_module_lists_its_names(name):
    module = public(name)
    assert len(set(module.__all__)) == len(module.__all__)
    assert [one for one in module.__all__ if not hasattr(module, one)] == []
    if name == "gradalign.ops":
        assert set(module.__all__) == set(module.SCHEMAS)
    wanted = {one for owner, names in documented() if owner == name for one in names}
    assert wanted - set(module.__all__) == set()


HOOKS = ("train_start", "train_batch_start", "train_batch_end", "train_end", "exception")
# What the rule does not ask for, and why.
WITHOUT_ARGUMENTS = {
    "gradalign.engine.transaction.Accumulation": "made by GradAlign.accumulate, not by the user",
    "gradalign.integrations.accelerate.Window": "made by accumulate, not by the user",
    **dict.fromkeys(
        (f"gradalign.integrations.lightning.GradAlignCallback.on_{hook}" for hook in HOOKS),
        "called by Lightning, with what `lightning.pytorch.Callback` documents",
    ),
}


def sections(text):
    """The sections of a docstring, by name."""
    _, *parts = SECTION.split(inspect.cleandoc(text or ""))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def named_in(section):
    """What a section has an entry for."""
    return set(re.findall(r"^    \*{0,2}(\w+)(?: \(.*?\))?:", section, re.MULTILINE))


def lacks(function, text):
    """What the docstring of a function or class does not tell; `text` is the docstring."""
    found = sections(text)
    arguments = named_in(found.get("Args", "")) | (
        named_in(found.get("Attributes", "")) if inspect.isclass(function) else set()
    )
    signature = inspect.signature(function)
    missing = [name for name in signature.parameters if name != "self" and name not in arguments]
    returns = not inspect.isclass(function) and signature.return_annotation not in (
        None,
        "None",
        inspect.Signature.empty,
    )
    return missing + ["Returns"] * (returns and "Returns" not in found)


def ours(kind):
    return getattr(kind, "__module__", "").startswith("gradalign.")


def callables(module):
    """(name, function or class, docstring) of all that `__all__` offers, methods that our classes define included."""
    for one in module.__all__:
        value = getattr(module, one)
        if (
            isinstance(value, ModuleType)
            or not ours(value)
            or not callable(value)
            or not hasattr(value, "__qualname__")
        ):
            continue
        name = f"{value.__module__}.{value.__qualname__}"
        yield name, value, value.__doc__
        for base in inspect.getmro(value) if inspect.isclass(value) else ():
            if not ours(base):
                continue
            for member, function in vars(base).items():
                function = getattr(function, "__func__", function)
                if not member.startswith("_") and inspect.isfunction(function):
                    yield f"{base.__module__}.{function.__qualname__}", function, function.__doc__


def is_contract(name, function):
    """Whether it is an estimator's version of a method that `Estimator` documents for all of them."""
    estimator = importlib.import_module("gradalign.engine.estimator").Estimator
    return name.startswith("gradalign.estimators.") and function.__name__ in vars(estimator)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_name_every_argument_and_what_is_returned(name):
    wrong = {
        where: missing
        for where, function, text in callables(public(name))
        if where not in WITHOUT_ARGUMENTS and not is_contract(where, function) and (missing := lacks(function, text))
    }
    assert wrong == {}


@pytest.mark.parametrize("name", MODULES)
def test_every_public_property_says_what_it_is(name):
    for one in public(name).__all__:
        kind = getattr(public(name), one)
        for base in inspect.getmro(kind) if inspect.isclass(kind) else ():
            for member, value in vars(base).items():
                if ours(base) and isinstance(value, property) and not member.startswith("_"):
                    assert value.__doc__, f"{base.__qualname__}.{member}"


def test_the_exceptions_are_still_needed():
    names = {where: (function, text) for name in MODULES for where, function, text in callables(public(name))}
    assert all(lacks(*names[where]) for where in WITHOUT_ARGUMENTS)


def test_a_docstring_that_lacks_something_is_found():
    def bare(x, y, *args) -> int:
        """One line.

        Args:
            x: a number.
            *args: more.
        """

    assert lacks(bare, bare.__doc__) == ["y", "Returns"]
