"""The house: which way imports point, between rooms and inside them, and what may stand where."""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from plait.tests.paths import ROOT

MAY: dict[str, set[str]] = {
    "ir": set(),
    "cost_model": {"ir"},
    "runtime": {"ir"},
    "planner": {"ir", "cost_model"},
    "codegen": {"ir", "runtime"},
    "api": {"ir", "cost_model", "planner", "codegen", "runtime"},
}
# Folders of a room from the ground up; a folder imports those below it. Files that stand in the room
# itself are named with a dot: `.program` is runtime/program.py.
FLOORS: dict[str, list[set[str]]] = {
    "ir": [
        {".errors", ".cached", ".late_names", ".passes", ".ranges", ".unknown_name"},
        {"model", "files", "devices", "compression"},
        {"ops", "plan"},
        {"analysis"},
        {"lowering", "text"},
        {"capture"},
    ],
    "cost_model": [
        {".compiled", ".execution_model", ".hardware", ".quantity", ".scaled_cluster"},
        {"communication", ".device_names"},
        {"operators", "pipeline"},
        {"memory", "placement"},
        {"explain"},
        {"calibration", ".what_if", ".rates"},
    ],
    "planner": [
        {"question", "solvers"},
        {"sharding", "activations", "compression", "allocation", "placement"},
        {"pricing", "interop"},
        {"layers"},
        {"search"},
        {"heterogeneous"},
    ],
    "runtime": [
        {".torch_private", ".host_memory", "comm"},
        {"compression", "launch"},
        {".session", "state", "inductor", "measurement", "operators", "torch_engine"},
        {"execution", "checkpoint"},
        {".program"},
        {"verification"},
    ],
    "codegen": [
        {".main", ".python_source", ".table", ".call_segment", "compression"},
        {".lower", ".group_table"},
        {".chunked_function", ".stage_chunk"},
        {".function", ".stage"},
        {".program", "placement"},
    ],
    "api": [
        {".options", ".parser", ".version", "formats", "predict", "view"},
        {"plans", ".placement", ".compiled_kernels"},
        {".compilation", "parallel", ".check", "serve", ".torch_engine"},
        {".python", ".scaled_down"},
        {"commands", ".elastic"},
        {".cli", ".named_cluster", ".workflow"},
    ],
}
FAMILIES = {"ir/ops", "api/commands"}  # of one kind: they may hold more files
BESIDE = 14  # files side by side in a folder
MOST_LINES, MOST_FUNCTION, MOST_PARAMETERS = 400, 60, 7
FILES = sorted(p for room in MAY for p in (ROOT / room).rglob("*.py"))
NAMES = {str(p.relative_to(ROOT)) for p in FILES}
TORCH_FREE = [
    p
    for p in FILES
    if p.relative_to(ROOT).parts[0] in ("planner", "cost_model", "ir")
    and p.relative_to(ROOT).parts[:2] != ("ir", "capture")
]


class Import(NamedTuple):
    line: int
    target: str  # a file of the house, or the name of a foreign module


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_file(parts: list[str]) -> str | None:
    stem = "/".join(parts)
    return next((f for f in (f"{stem}.py", f"{stem}/__init__.py") if f in NAMES), None)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file, relative or absolute, resolved to the file that it names."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                inside = module_file(parts[1:]) if parts[0] == "plait" else None
                yield Import(node.lineno, inside or alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                parts = package[: len(package) - node.level + 1] + parts
            elif parts[0] == "plait":
                parts = parts[1:]
            else:
                yield Import(node.lineno, node.module or "")
                continue
            for alias in node.names:
                target = module_file([*parts, alias.name]) or module_file(parts)
                if target is not None:
                    yield Import(node.lineno, target)
                elif parts and parts[0] not in MAY:
                    yield Import(node.lineno, ".".join(["plait", *parts]))


def room(file: str) -> str:
    """The folder of its top room in which a file stands, or the file itself: `comm`, `.program`."""
    parts = file.split("/")
    return parts[1] if len(parts) > 2 else "." + parts[1].removesuffix(".py")


def test_imports_point_down():
    up = []
    for path in FILES:
        top = path.relative_to(ROOT).parts[0]
        for line, target in imports(path):
            to = target.split("/")[0]
            points_down = to not in MAY or "/" not in target or to == top or to in MAY[top]
            if target.startswith("plait.") or not points_down:
                up.append(f"{name(path)}:{line} imports {target}")
    assert not up


@pytest.mark.parametrize("top", sorted(MAY))
def test_folders_of_a_room_lie_on_floors(top):
    """Every folder stands on one floor of six at most, and imports only floors below."""
    assert len(FLOORS[top]) <= 6
    floors = {folder: i for i, floor in enumerate(FLOORS[top]) for folder in floor}
    folders = {room(f) for f in NAMES if f.startswith(f"{top}/")} - {".__init__"}
    assert folders == set(floors)
    up = {
        f"{name(path)}:{line} imports {target}"
        for path in FILES
        for line, target in imports(path)
        if name(path).startswith(f"{top}/") and target.startswith(f"{top}/")
        if ".__init__" not in (room(name(path)), room(target))
        if room(name(path)) != room(target)
        if floors[room(name(path))] <= floors[room(target)]
    }
    assert not up


def test_no_two_files_import_each_other_when_loaded():
    """Imports at the top of modules make no circle."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        body = parsed(path).body
        top = {n.lineno for n in body if isinstance(n, ast.Import | ast.ImportFrom)}
        graph[name(path)] = {t for line, t in imports(path) if line in top and t in NAMES}
    done: set[str] = set()

    def visit(file: str, trail: tuple[str, ...]) -> None:
        assert file not in trail, " -> ".join((*trail[trail.index(file) :], file))
        if file not in done:
            for target in sorted(graph[file] - {file}):
                visit(target, (*trail, file))
            done.add(file)

    for file in sorted(graph):
        visit(file, ())


def test_plain_data_knows_no_torch():
    assert not [
        name(path)
        for path in TORCH_FREE
        if any(target.split(".")[0] == "torch" for _, target in imports(path))
    ]


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def test_files_and_functions_stay_small():
    assert not [name(path) for path in FILES if path.read_text().count("\n") > MOST_LINES]
    assert not [
        f"{name(path)}: {node.name}"
        for path, node in functions()
        if node.end_lineno - node.lineno > MOST_FUNCTION
    ]


def test_functions_take_few_parameters_and_name_what_they_give():
    """No anonymous tuple leaves a public function."""
    ours = [(p, node) for p, node in functions() if not _has_foreign_signature(p, node)]
    assert not [
        f"{name(p)}: {node.name}" for p, node in ours if _parameters(node) > MOST_PARAMETERS
    ]
    assert not [
        f"{name(path)}: {node.name}"
        for path, node in ours
        if not node.name.startswith("_") and _is_anonymous(node.returns)
    ]


def _parameters(node: ast.FunctionDef) -> int:
    """Parameters that a caller gives: without `self` and `cls`."""
    listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return sum(a.arg not in ("self", "cls") for a in listed)


def _has_foreign_signature(path: Path, node: ast.FunctionDef) -> bool:
    """Functions that numba compiles take flat arrays, torch operators what their schema says, torch
    optimizers their options by keyword, as the public functions of the API do."""
    decorators = " ".join(ast.unparse(d) for d in node.decorator_list)
    return (
        any(text in decorators for text in ("compiled", "inner", "register_", "custom_op"))
        or name(path).startswith(("ir/capture/operators/", "runtime/comm/expert_all_to_all"))
        or (name(path).startswith("runtime/compression/optimizers/") and node.name == "__init__")
        or (name(path) in ("api/python.py", "api/placement.py", "runtime/program.py"))
    )


def _is_anonymous(returns: ast.expr | None) -> bool:
    """`tuple[A, B, C]`: three or more things without names."""
    return (
        isinstance(returns, ast.Subscript)
        and ast.unparse(returns.value) == "tuple"
        and isinstance(returns.slice, ast.Tuple)
        and len(returns.slice.elts) >= 3
    )


def test_every_module_says_what_it_is():
    assert not [name(path) for path in FILES if not ast.get_docstring(parsed(path))]


def test_modules_hide_nothing():
    """No globals; only the API prints and reads the environment."""
    hidden = []
    for path in FILES:
        in_api = path.relative_to(ROOT).parts[0] == "api"
        for node in ast.walk(parsed(path)):
            prints = isinstance(node, ast.Name) and node.id == "print"
            reads = isinstance(node, ast.Attribute) and node.attr == "environ"
            if isinstance(node, ast.Global) or ((prints or reads) and not in_api):
                hidden.append(f"{name(path)}:{node.lineno}")
    assert not hidden


def test_folders_hold_a_dozen_files():
    beside: dict[str, int] = {}
    for file in NAMES:
        if not file.endswith("__init__.py"):
            folder = file.rsplit("/", 1)[0]
            beside[folder] = beside.get(folder, 0) + 1
    assert not {k: v for k, v in beside.items() if v > BESIDE and k not in FAMILIES}


def test_every_package_is_shipped():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = settings["tool"]["setuptools"]["packages"]
    rooms = [p.parent for top in MAY for p in (ROOT / top).rglob("__init__.py")]
    assert set(listed) == {"plait"} | {
        "plait." + ".".join(p.relative_to(ROOT).parts) for p in rooms
    }
