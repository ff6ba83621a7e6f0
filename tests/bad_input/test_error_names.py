"""Every error and warning that reaches a caller can be caught by its name in the package."""

import ast
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import dynalyze
from dynalyze import errors

PACKAGE = Path(dynalyze.__file__).parent
# How a recursion is told why a transition has no end, which becomes the status of its result
CAUGHT_WITHIN = {"NoLimitPointError", "UndecidedTransitionError", "UnsolvedBranchError"}
NAMES = [
    name for name, thing in inspect.getmembers(errors, inspect.isclass)
    if issubclass(thing, BaseException) and name not in CAUGHT_WITHIN
]  # fmt: skip
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What tells kinds of things apart by their names
NAMES_OF_TYPES = {"__name__", "__qualname__", "__module__"}


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_importable_from_the_package(name):
    assert getattr(dynalyze, name) is getattr(errors, name)
    assert name in dynalyze.__all__


def test_every_error_and_warning_is_defined_in_errors():
    pytest.importorskip("torch")
    modules = [m.name for m in pkgutil.walk_packages(dynalyze.__path__, "dynalyze.")]
    assert "dynalyze.training.assemble" in modules
    elsewhere = {
        f"{thing.__module__}.{name}"
        for module in modules
        for name, thing in inspect.getmembers(import_module(module), inspect.isclass)
        if issubclass(thing, BaseException)
        and not name.startswith("_")  # which ends a loop within one function
        and thing.__module__.startswith("dynalyze.")
        and thing.__module__ != "dynalyze.errors"
    }
    assert elsewhere == set()


def dispatches(tree):
    """Lines that compare or search the text of an error, a warning or the name of a type."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr not in {"startswith", "endswith", "partition", "split", "find"}:
                continue
            parts = [node.func.value]
        else:
            continue
        for part in parts:
            if isinstance(part, ast.Attribute) and part.attr in NAMES_OF_TYPES:
                yield node.lineno
            if isinstance(part, ast.Call) and getattr(part.func, "id", "") == "str":
                argument = ast.unparse(part.args[0])
                if argument.endswith(("error", "message", "caught", "exception")):
                    yield node.lineno


@pytest.mark.parametrize(
    "source",
    [
        "type(x).__name__ == 'ReLU'",
        "x.category.__name__ == 'NonSmoothWarning'",
        "type(x).__module__.startswith('torch.')",
        "'pickle' in str(error)",
        "str(warning.message).startswith('lsoda')",
    ],
)
def test_the_search_for_dispatch_on_text_finds_it(source):
    assert list(dispatches(ast.parse(source))) == [1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_dispatches_on_the_text_of_errors_or_the_names_of_types(path):
    assert list(dispatches(ast.parse(path.read_text(encoding="utf-8")))) == []
