"""Imports inside `api` point one way: commands use the rest, and no module is in a circle."""

import ast
import graphlib

from plait.tests.paths import ROOT

API = ROOT / "api"
FILES = {p.relative_to(API).with_suffix("").as_posix(): p for p in API.rglob("*.py")}
MODULES = {name.removesuffix("/__init__"): path for name, path in FILES.items()}


def imported(name, path):
    """Modules of `api` that a module imports, at its top or when a function runs."""
    package = path.parent.relative_to(API).parts
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not 0 < node.level <= len(package) + 1:
            continue
        base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
        base = [part for part in base if part]
        for parts in (base, *([*base, alias.name] for alias in node.names)):
            if "/".join(parts) in MODULES:
                modules.add("/".join(parts))
    return modules - {name}


GRAPH = {name: imported(name, path) for name, path in MODULES.items() if name != "__init__"}


def test_no_circles():
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())  # CycleError names a circle
    assert set(GRAPH) <= set(order)
    assert "files" in GRAPH["plan_object"]  # imports are read at all


def test_only_the_command_line_imports_commands():
    users = {
        name for name, modules in GRAPH.items() if any(m.startswith("commands/") for m in modules)
    }
    assert {name for name in users if not name.startswith("commands/")} == {"cli"}
    assert "commands/plan" not in {m for n, ms in GRAPH.items() for m in ms if n != "cli"}
