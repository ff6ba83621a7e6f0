"""What is public is in `__all__`, has a docstring, and stands in docs/names.md: that, and no more.

python tests/documentation/test_public_names.py   # writes docs/names.md anew
"""

import ast
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import dynalyze

PACKAGE = Path(dynalyze.__file__).parent
PAGE = PACKAGE.parent / "docs" / "names.md"
ROOMS = ("checks", "datasets", "models", "symbolic")
NEED_TORCH = ("ranks", "spectra", "training", "training.vit")
INTRODUCTION = """\
# Public names

What stands here is what a release keeps ([CONTRIBUTING](../CONTRIBUTING.md)); all else may change.
The sentence is the first of the docstring; `help` has the rest.
"""


def rows(module_name):
    """Rows of a package's table, one for each name in its `__all__`."""
    module = import_module(module_name)
    for name in module.__all__:
        if name == "__version__":
            continue
        documentation = inspect.getdoc(getattr(module, name))
        assert documentation, f"{module_name}.{name} has no docstring"
        yield f"| `{name}` | {documentation.splitlines()[0].replace('|', chr(92) + '|')} |"


def section(module_name):
    return "\n".join([f"## {module_name}", "", "| | |", "|---|---|", *rows(module_name), ""])


def page():
    names = ["dynalyze", *(f"dynalyze.{room}" for room in (*ROOMS, *NEED_TORCH))]
    return "\n".join([INTRODUCTION, *map(section, names)])


@pytest.mark.parametrize("room", ["", *ROOMS, *NEED_TORCH])
def test_every_public_name_has_a_docstring_and_stands_in_the_documentation(room):
    if room in NEED_TORCH:
        pytest.importorskip("torch")
    name = f"dynalyze.{room}".rstrip(".")
    assert section(name) in PAGE.read_text(encoding="utf-8"), f"run python {__file__}"


def test_the_page_of_names_names_nothing_else():
    pytest.importorskip("torch")
    assert PAGE.read_text(encoding="utf-8") == page(), f"run python {__file__}"


@pytest.mark.parametrize("room", [*ROOMS, "ranks", "spectra"])
def test_what_the_package_offers_no_room_offers_again(room):
    if room in NEED_TORCH:
        pytest.importorskip("torch")
    module = import_module(f"dynalyze.{room}")
    twice = [n for n in module.__all__ if getattr(module, n) is getattr(dynalyze, n, None)]
    assert twice == []


def test_modules_have_no_underscore_but_those_at_the_bottom():
    private = {
        part
        for path in PACKAGE.rglob("*.py")
        for part in path.relative_to(PACKAGE).with_suffix("").parts
        if part.startswith("_") and not part.startswith("__")
    }
    assert private == {"_core", "_version"}


def test_no_module_uses_what_another_marks_with_an_underscore():
    taken = [
        f"{path.relative_to(PACKAGE)}: {node.module}.{alias.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynalyze")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert taken == []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
