"""Cuts a generated function into segments: statements between two uses of `comm`.

    v64 = aten.view.default(x, [512, 128])         [v65] = segment_0([x, w])
    v65 = aten.mm.default(v64, w)            →     v66 = comm.all_reduce(v65, "tp")
    del v64
    v66 = comm.all_reduce(v65, "tp")

A segment takes a list, which it empties, so that an operand is freed after its last use inside.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...ir.ops.embedding import SPARSE_GRADIENT

OPERATORS = (
    "aten",
    "plait",
    "torch",
    "transformers",
)  # names of the libraries in generated modules
LocalFunction = Callable[..., tuple[Tensor, ...]]
Segment = Callable[[list[Tensor]], Sequence[Tensor]]


class SegmentCode(NamedTuple):
    """Statements of a segment, its operands and results by name, and the operands that end in it."""

    statements: list[ast.stmt]
    operands: tuple[str, ...]
    results: tuple[str, ...]
    ended: tuple[str, ...]


def with_segments(
    function: ast.FunctionDef,
    space: dict[str, Any],
    compiled: Callable[[str, LocalFunction], Segment],
) -> Any:
    """The function with every segment replaced by what `compiled` makes of it, from its name and code.

    `space` are the globals of the function; nothing is added to it.
    """
    known = dict(space)
    body: list[ast.stmt] = []
    for number, part in enumerate(_parts(function)):
        if isinstance(part, SegmentCode):
            name = f"{function.name}_segment_{number}"
            known[name] = compiled(name, _defined(_local_function(name, part), known))
            body += _calls(name, part)
        else:
            body.append(part)
    rewritten = ast.FunctionDef(function.name, function.args, body, [])
    return _defined(ast.copy_location(rewritten, function), known)


def _parts(function: ast.FunctionDef) -> list[SegmentCode | ast.stmt]:
    """The body as segments and the statements between them."""
    parts: list[SegmentCode | ast.stmt] = []
    run: list[ast.stmt] = []
    for position, statement in enumerate(function.body):
        if _is_operator(statement) or (run and isinstance(statement, ast.Delete)):
            run.append(statement)
            continue
        parts += _segment(run, function.body[position:])
        run = []
        parts.append(statement)
    return parts


def _is_operator(statement: ast.stmt) -> bool:
    """Whether a statement calls an operator that needs nothing but tensors and literals."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        return False
    names = _names([statement.value], ast.Load)
    sparse = SPARSE_GRADIENT in f"{ast.unparse(statement.value.func)}.default"
    return "comm" not in names and bool(names & set(OPERATORS)) and not sparse


def _segment(run: list[ast.stmt], rest: Sequence[ast.stmt]) -> list[SegmentCode | ast.stmt]:
    """A run of statements as a segment; `rest` follows it."""
    if not run:
        return []
    operands: dict[str, None] = {}
    assigned: set[str] = set()
    ended: dict[str, None] = {}
    for statement in run:
        if isinstance(statement, ast.Delete):
            ended.update(dict.fromkeys(sorted(_names([statement], ast.Del))))
            continue
        loaded = _names([statement], ast.Load) - set(OPERATORS) - assigned
        operands.update(dict.fromkeys(sorted(loaded)))
        assigned |= _names([statement], ast.Store)
    needed = (_names(rest, ast.Load) | _names(rest, ast.Del)) - set(OPERATORS)
    results = tuple(name for name in sorted(assigned & needed) if name not in ended)
    statements = [s for s in run if not isinstance(s, ast.Delete)]
    freed = tuple(name for name in ended if name not in assigned)
    return [SegmentCode(statements, tuple(operands), results, freed)]


def _names(nodes: Iterable[ast.AST], context: type[ast.expr_context]) -> set[str]:
    """Names but those that are called, as in `float("inf")`, which name no value."""
    all_nodes = [node for root in nodes for node in ast.walk(root)]
    called = {id(node.func) for node in all_nodes if isinstance(node, ast.Call)}
    return {
        node.id
        for node in all_nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, context) and id(node) not in called
    }


def _local_function(name: str, segment: SegmentCode) -> ast.FunctionDef:
    """`def name(operands): statements; return results`."""
    source = f"def {name}({', '.join(segment.operands)}):\n    return ({_listed(segment.results)})"
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    _place(function, segment.statements[0])
    function.body = [*segment.statements, *function.body]
    return function


def _calls(name: str, segment: SegmentCode) -> list[ast.stmt]:
    """Statements that run a segment and let go of the operands that end in it."""
    lines = [f"operands = [{', '.join(segment.operands)}]"]
    lines += [f"del {', '.join(segment.ended)}"] * bool(segment.ended)
    results = _listed(segment.results)
    lines.append(f"{f'({results}) = ' if results else ''}{name}(operands)")
    statements = ast.parse("\n".join(lines)).body
    for statement in statements:
        _place(statement, segment.statements[0])
    return statements


def _place(root: ast.AST, where: ast.stmt) -> None:
    """Give a tree the line of a statement, for tracebacks."""
    for node in ast.walk(root):
        ast.copy_location(node, where)


def _listed(names: Sequence[str]) -> str:
    return "".join(f"{name}, " for name in names)


def _defined(function: ast.FunctionDef, space: dict[str, Any]) -> Any:
    """The function of an abstract syntax tree; line numbers are those of the generated file."""
    module = ast.fix_missing_locations(ast.Module([function], []))
    defined: dict[str, Any] = {}
    exec(compile(module, space.get("__file__", function.name), "exec"), space, defined)
    return defined[function.name]
