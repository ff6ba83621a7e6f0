"""Imports run one way: from room to room down the list, and inside a room without circles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dynalyze

ROOT = Path(dynalyze.__file__).parent
ROOMS = (
    ("errors", "_version"),
    ("_core",),
    ("plots",),
    ("models",),
    ("datasets",),
    ("flow",),
    ("stages",),
    ("checks", "symbolic"),
    ("spectra",),
    ("training",),
    ("ranks",),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}


def imported(path):
    """Modules of the library that a file imports, deferred imports and those for types included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


IMPORTS = {module: imported(path) for module, path in MODULES.items()}


def test_every_module_has_a_room():
    assert {room(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module):
    own = room(module)
    upward = [
        other
        for other in IMPORTS[module]
        if room(other) != own and FLOOR[room(other)] >= FLOOR[own]
    ]
    assert not upward, f"{module} imports {upward}, which stand above it or beside it"


def test_no_import_circle():
    try:
        tuple(TopologicalSorter(IMPORTS).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
