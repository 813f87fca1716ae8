"""The words of the house: retired ones stay out, one class name has one home (see CONTRIBUTING)."""

import ast
import re
from pathlib import Path

import pytest

from plait.tests.paths import ROOT

ROOMS = ("ir", "cost_model", "planner", "codegen", "runtime", "api")
AROUND = ("tests", "benchmarks", "examples")
PACKAGE = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
FILES = [*PACKAGE, *sorted(p for room in AROUND for p in (ROOT / room).rglob("*.py"))]
# Private words, as parts of identifiers (`way` is a part of `way_of` and of `MyWay`), with the folders
# in which the word is the field's own: packed codes have machine words, Adam has moments.
CODES = ("ir/compression", "runtime/compression", "codegen/compression", "cost_model/communication")
RETIRED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        "piece pieces way ways cut cuts entry entries sums passage passages lying crossing hop hops "
        "blend practice crew crews leader led wire wires parcel parcels occasion owed held kept "
        "early alike fixes tiny finer salt".split(),
        (),
    ),
    **dict.fromkeys(["word", "words", "moment", "moments"], CODES),
    "fleet": ("benchmarks/rivals", "tests/benchmarks/rivals"),  # Sailor's own word
}
# The name of a test is a sentence: what is also a plain verb or adjective may stand in it.
PLAIN = set("way ways cut cuts sums held kept alike early led".split())
PAST = {"found", "made", "own", "given", "taken", "shown", "asked"}  # say that, not what
SHORT = 3  # lines that such a local may live


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parts(identifier: str) -> list[str]:
    """`FooBar_baz` in lower-case parts."""
    return [p.lower() for p in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", identifier)]


def identifiers(tree: ast.AST) -> set[str]:
    """Names that the file defines: all that is assigned, declared or imported under."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.alias) and node.asname:
            names.add(node.asname)
    return names


def retired(identifier: str, where: str) -> bool:
    allowed = PLAIN if identifier.startswith("test_") else set()
    return any(
        part in RETIRED and part not in allowed and not where.startswith(RETIRED[part] or ("-",))
        for part in parts(identifier)
    )


def long_locals(function: ast.FunctionDef) -> set[str]:
    """Names of `PAST` that live for more than `SHORT` lines."""
    lines: dict[str, list[int]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in PAST:
            lines.setdefault(node.id, []).append(node.lineno)
    return {n for n, rows in lines.items() if max(rows) - min(rows) > SHORT}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name(path): ast.parse(path.read_text()) for path in FILES}


def test_retired_names_stay_out(trees):
    bad = {
        (where, one)
        for where, tree in trees.items()
        for one in identifiers(tree) | {Path(where).stem} - {"test_words"}
        if retired(one, where)
    }
    assert not bad


def test_locals_say_what_they_hold(trees):
    """A local called `found` or `made` lives for three lines at most."""
    bad = {
        (where, node.name): names
        for where, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (names := long_locals(node))
    }
    assert not bad


def test_a_class_has_one_home(trees):
    """Apart from `plait.Plan`-like classes, which give the data of the same name its methods."""
    homes: dict[str, set[str]] = {}
    for path in PACKAGE:
        for node in ast.walk(trees[name(path)]):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
            if node.name not in bases:
                homes.setdefault(node.name, set()).add(name(path))
    assert not {k: v for k, v in homes.items() if len(v) > 1}
