"""Cut a flat graph into calls: repeated modules, the glue between them, and one data call first."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from ..model import Argument, Op, Ref
from .export import Invocation
from .graph import Graph

Unit = tuple[str, int]  # path of a module and the number of its invocation


@dataclass
class Segment:
    """Operators that become one call: `unit` for a module, None for glue."""

    unit: Unit | None
    ops: list[Op] = field(default_factory=list)
    name: str = ""


def cut(graph: Graph, invocations: list[Invocation]) -> list[Segment]:
    """Segments in order, the first one the `data` segment (maybe empty)."""
    units = _Cutter(graph, invocations).units()
    data, runs = Segment(None, name="data"), list[Segment]()
    known = set(graph.inputs) | {v for v, p in graph.parameters.items() if p.kind != "parameter"}
    for op, unit in zip(graph.ops, units, strict=True):
        if unit is None and known.issuperset(op.operands()):
            data.ops.append(op)
            known.update(op.results)
            continue
        if not runs or runs[-1].unit != unit:
            runs.append(Segment(unit))
        runs[-1].ops.append(op)
    return [data, *_named(_joined(runs))]


def _joined(runs: list[Segment]) -> list[Segment]:
    """A module whose parts are called from outside comes in pieces: join them over the glue."""
    joined: list[Segment] = []
    for run in runs:
        if (
            len(joined) >= 2
            and run.unit is not None
            and joined[-1].unit is None
            and joined[-2].unit == run.unit
        ):
            glue = joined.pop()
            joined[-1].ops += glue.ops + run.ops
        else:
            joined.append(run)
    return joined


def _named(runs: list[Segment]) -> list[Segment]:
    for i, run in enumerate(runs):
        if run.unit is None:
            run.name = "entry" if i == 0 else "exit" if i == len(runs) - 1 else "middle"
    return runs


class _Cutter:
    def __init__(self, graph: Graph, invocations: list[Invocation]) -> None:
        self.graph, self.invocations = graph, invocations
        self.paths = [invocations[int(op.scope)].path for op in graph.ops]

    def units(self) -> list[Unit | None]:
        """The unit of every operator."""
        chosen = self.choose("", list(range(len(self.graph.ops)))) or set()
        cache: dict[str, Unit | None] = {}
        for op, path in zip(self.graph.ops, self.paths, strict=True):
            if op.scope not in cache:
                cache[op.scope] = self.unit(int(op.scope), path, chosen)
        return [cache[op.scope] for op in self.graph.ops]

    def unit(self, invocation: int, path: str, chosen: set[str]) -> Unit | None:
        prefix = next((p for p in _prefixes(path) if p in chosen), None)
        if prefix is None:
            return None
        while invocation >= 0:
            if self.invocations[invocation].path == prefix:
                return prefix, invocation
            invocation = self.invocations[invocation].parent
        return prefix, -1

    def choose(self, inside: str, members: list[int]) -> set[str] | None:
        """Paths to cut at, below module `inside`; None when nothing there repeats."""
        containers: dict[str, dict[str, list[int]]] = {}
        for i in members:
            child = _first_numbered(self.paths[i], inside)
            if child is not None:
                containers.setdefault(child.rpartition(".")[0], {}).setdefault(child, []).append(i)
        found: set[str] = set()
        for children in containers.values():
            found |= self.repeated(children) or set()
        if found or inside:
            return found or None
        # nothing repeats anywhere: siblings of one class are still good places to cut
        for children in containers.values():
            found |= self.kindred(children)
        return found or None

    def repeated(self, children: dict[str, list[int]]) -> set[str] | None:
        """The children if two of them are equal, else what repeats inside them."""
        shapes = [_shape([self.graph.ops[i] for i in m], self.graph) for m in children.values()]
        if len(set(shapes)) < len(shapes):
            return set(children)
        found: set[str] = set()
        plain: dict[str, list[int]] = {}
        for child, members in children.items():
            inner = self.choose(child, members)
            if inner is None:
                plain[child] = members
            found |= inner or set()
        if not found:
            return None
        for child, members in plain.items():
            found |= self.kindred(self.below(child, members)) or {child}
        return found

    def below(self, inside: str, members: list[int]) -> dict[str, list[int]]:
        children: dict[str, list[int]] = {}
        for i in members:
            child = _first_numbered(self.paths[i], inside)
            if child is not None:
                children.setdefault(child, []).append(i)
        return children

    def kindred(self, children: dict[str, list[int]]) -> set[str]:
        """The children of a class that at least two of them share."""
        classes: dict[str, list[str]] = {}
        for child in children:
            name = next((v.class_name for v in self.invocations if v.path == child), "")
            classes.setdefault(name, []).append(child)
        return {c for name, same in classes.items() if name and len(same) >= 2 for c in same}


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _first_numbered(path: str, inside: str) -> str | None:
    """The outermost prefix of `path` below `inside` whose last component is a number."""
    if inside and not path.startswith(inside + "."):
        return None
    for prefix in _prefixes(path):
        if len(prefix) > len(inside) and prefix.rpartition(".")[2].isdecimal():
            return prefix
    return None


def _shape(ops: list[Op], graph: Graph) -> Hashable:
    """The operators up to the names of values: equal for equal layers."""
    return canonical(ops, graph, {})


def canonical(ops: list[Op], graph: Graph, numbers: dict[int, int]) -> tuple[Hashable, ...]:
    """Operators as a hashable value, values numbered by `numbers`, then by first appearance."""

    def number(argument: Argument) -> Hashable:
        if isinstance(argument, Ref):
            value = numbers.setdefault(argument.value, len(numbers))
            return ("%", value, graph.types[argument.value])
        if isinstance(argument, tuple):
            return tuple(number(part) for part in argument)
        return type(argument).__name__, argument

    lines = []
    for op in ops:
        operands = tuple(number(a) for a in op.args)
        named = tuple((k, number(a)) for k, a in sorted(op.kwargs.items()))
        made = tuple(
            None if r < 0 else (numbers.setdefault(r, len(numbers)), graph.types[r])
            for r in op.results
        )
        lines.append((op.target, operands, named, made))
    return tuple(lines)
