"""The house: which way imports point, what may stand where, and that every package is shipped."""

import ast
import tomllib
from pathlib import Path

import pytest

from plait.tests.paths import ROOT

# fmt: off
MAY = {
    "ir": set(), "cost_model": {"ir"}, "runtime": {"ir"}, "planner": {"ir", "cost_model"},
    "codegen": {"ir", "runtime"}, "api": {"ir", "cost_model", "planner", "codegen", "runtime"},
}
# fmt: on
FILES = sorted(p for room in MAY for p in (ROOT / room).rglob("*.py"))
TORCH_FREE = [p for p in FILES if p.relative_to(ROOT).parts[0] in ("planner", "cost_model")] + [
    p
    for p in FILES
    if p.relative_to(ROOT).parts[0] == "ir" and "capture" not in p.relative_to(ROOT).parts
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[tuple[int, str]]:
    """(relative level, module) of every import of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, module) for module in modules]
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path):
    parts = path.relative_to(ROOT).parts
    for level, module in imports(path):
        top = module.split(".")[0]
        if level == len(parts) and top in MAY and top != parts[0]:
            assert top in MAY[parts[0]], f"{parts[0]} imports {top}"


@pytest.mark.parametrize("path", TORCH_FREE, ids=name)
def test_plain_data_knows_no_torch(path):
    assert not any(module.split(".")[0] == "torch" for _, module in imports(path))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 60, node.name


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_module_says_what_it_is_and_hides_nothing(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    room = path.relative_to(ROOT).parts[0]
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global)
        if room != "api":
            assert not (isinstance(node, ast.Name) and node.id == "print")
            assert not (isinstance(node, ast.Attribute) and node.attr == "environ")


def test_every_package_is_shipped():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = [p.parent for room in MAY for p in (ROOT / room).rglob("__init__.py")]
    assert set(listed) == {"plait"} | {
        "plait." + ".".join(room.relative_to(ROOT).parts) for room in rooms
    }
