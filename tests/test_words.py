"""The words of the house: retired ones stay out, one class name has one home (see CONTRIBUTING)."""

import ast
import re
from pathlib import Path

import pytest

from plait.tests.paths import ROOT

ROOMS = ("ir", "cost_model", "planner", "codegen", "runtime", "api")
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
# Private words, as parts of identifiers (`way` is a part of `way_of` and of `MyWay`), with the folders
# in which the word is the field's own: packed codes have machine words, Adam has moments.
CODES = ("ir/compression", "runtime/compression", "codegen/compression", "cost_model/communication")
RETIRED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        "piece pieces way ways cut cuts entry entries sums passage passages lying crossing hop hops "
        "blend practice fleet crew crews leader led wire wires parcel parcels occasion owed held kept "
        "early alike fixes tiny finer salt".split(),
        (),
    ),
    **dict.fromkeys(["word", "words", "moment", "moments"], CODES),
}
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


@pytest.mark.parametrize("path", FILES, ids=name)
def test_retired_words_stay_out(path):
    where = name(path)
    defined = identifiers(ast.parse(path.read_text())) | {path.stem}
    bad = {
        identifier
        for identifier in defined
        for part in parts(identifier)
        if part in RETIRED and not where.startswith(RETIRED[part] or ("-",))
    }
    assert not bad


@pytest.mark.parametrize("path", FILES, ids=name)
def test_locals_say_what_they_hold(path):
    """A local called `found` or `made` lives for three lines at most."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        lines: dict[str, list[int]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in PAST:
                lines.setdefault(node.id, []).append(node.lineno)
        long = {n for n, rows in lines.items() if max(rows) - min(rows) > SHORT}
        assert not long, f"{function.name}: {long}"


def test_a_class_has_one_home():
    """Apart from `plait.Plan`-like classes, which give the data of the same name its methods."""
    homes: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
            if node.name not in bases:
                homes.setdefault(node.name, set()).add(name(path))
    assert not {k: v for k, v in homes.items() if len(v) > 1}
