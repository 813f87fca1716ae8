"""Outline a flat graph into calls: repeated modules, the glue between them, a data call first."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from ..model.model import Argument, Op, Ref
from ..passes import Pass
from .export import Invocation
from .graph import FlatGraph
from .operators.user_backward import USER_BACKWARD
from .recorded.interchangeable import in_order_of_use

ModuleRun = tuple[str, int]  # path of a module and the number of its invocation


@dataclass
class GraphSegment:
    """Operators that become one call: `unit` for a module, None for glue."""

    unit: ModuleRun | None
    ops: list[Op] = field(default_factory=list)
    name: str = ""


class Outline(Pass[FlatGraph, list[GraphSegment]], frozen=True):
    """Cut a graph into segments in order; the first, perhaps empty, depends on the batch alone."""

    invocations: list[Invocation]
    name = "outline"

    def apply(self, value: FlatGraph) -> list[GraphSegment]:
        units = _Outliner(value, self.invocations).units()
        data, runs = GraphSegment(None, name="data"), list[GraphSegment]()
        known = set(value.inputs)
        # a buffer that changes is read where it changes, lest every stage has one of its own
        known |= {
            v
            for v, p in value.parameters.items()
            if p.kind != "parameter" and p.name not in value.updates
        }
        before_micro_batches = counted(value, [unit is None for unit in units], known)
        for number, (op, unit) in enumerate(zip(value.ops, units, strict=True)):
            if number in before_micro_batches or (unit is None and known.issuperset(op.operands())):
                data.ops.append(op)
                known.update(op.results)
                continue
            if not runs or runs[-1].unit != unit:
                runs.append(GraphSegment(unit))
            runs[-1].ops.append(op)
        users = [op for run in runs for op in run.ops]
        data.ops = in_order_of_use(data.ops, users, value)
        return [data, *_named(_joined(runs))]


def counted(graph: FlatGraph, glue: list[bool], known: set[int]) -> set[int]:
    """Operators between modules that draw numbers and count them over all samples: the batch and the key
    of the step say them, before any micro-batch."""
    drawn, makers, counts = known | {graph.key}, dict[int, int](), list[int]()
    for number, op in enumerate(graph.ops):
        if glue[number] and drawn.issuperset(op.operands()):
            drawn.update(op.results)
            makers.update(dict.fromkeys(op.results, number))
            sizes = [graph.types[v].elements for v in op.results if v >= 0]
            if (
                max(sizes, default=0)
                == 1
                < max((graph.types[v].elements for v in op.operands()), default=1)
            ):
                counts.append(number)
    before_micro_batches = set[int]()
    while counts:
        number = counts.pop()
        if number not in before_micro_batches:
            before_micro_batches.add(number)
            counts += [makers[v] for v in graph.ops[number].operands() if v in makers]
    return before_micro_batches


def _joined(runs: list[GraphSegment]) -> list[GraphSegment]:
    """Merge the segments of a module whose submodules are called from outside, with the glue."""
    joined: list[GraphSegment] = []
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


def _named(runs: list[GraphSegment]) -> list[GraphSegment]:
    for i, run in enumerate(runs):
        if run.unit is None:
            run.name = "entry" if i == 0 else "exit" if i == len(runs) - 1 else "middle"
    return runs


class _Outliner:
    def __init__(self, graph: FlatGraph, invocations: list[Invocation]) -> None:
        self.graph, self.invocations = graph, invocations
        self.paths = [invocations[int(op.scope)].path for op in graph.ops]

    def units(self) -> list[ModuleRun | None]:
        """The unit of every operator."""
        chosen = self.choose("", list(range(len(self.graph.ops))))
        cache: dict[str, ModuleRun | None] = {}
        for op, path in zip(self.graph.ops, self.paths, strict=True):
            if op.scope not in cache:
                cache[op.scope] = self.unit(int(op.scope), path, chosen)
        return [cache[op.scope] for op in self.graph.ops]

    def unit(self, invocation: int, path: str, chosen: set[str]) -> ModuleRun | None:
        prefix = next((p for p in _prefixes(path) if p in chosen), None)
        return None if prefix is None else self.run_of(prefix, invocation)

    def run_of(self, prefix: str, invocation: int) -> ModuleRun:
        """The run of module `prefix` that contains an invocation; a shared module has several."""
        known = self.invocations[invocation]
        invocation = known.run if known.line else invocation
        while invocation >= 0:
            if self.invocations[invocation].path == prefix:
                return prefix, invocation
            invocation = self.invocations[invocation].parent
        return prefix, -1

    def children(self, inside: str, members: list[int]) -> dict[str, dict[ModuleRun, list[int]]]:
        """Runs of the outermost numbered modules below `inside`, by the container they are in."""
        children: dict[str, dict[ModuleRun, list[int]]] = {}
        for i in members:
            child = _first_numbered(self.paths[i], inside)
            if child is not None:
                unit = self.run_of(child, int(self.graph.ops[i].scope))
                children.setdefault(child.rpartition(".")[0], {}).setdefault(unit, []).append(i)
        return children

    def choose(self, inside: str, members: list[int]) -> set[str]:
        """Paths to outline at, below module `inside`; empty when nothing there repeats."""
        containers = list(self.children(inside, members).values())
        repeated = {path for c in containers for path in self.repeated(c)}
        if repeated or inside:
            return repeated
        # nothing repeats anywhere: siblings of one class are still good places to outline
        return {path for c in containers for path in self.same_class(c)}

    def repeated(self, children: dict[ModuleRun, list[int]]) -> set[str]:
        """The children if two of them are equal, else what repeats inside them."""
        shapes = [
            canonical([self.graph.ops[i] for i in m], self.graph, {}) for m in children.values()
        ]
        if len(set(shapes)) < len(shapes):
            return {path for path, _ in children}
        inner = {unit: self.choose(unit[0], members) for unit, members in children.items()}
        if not any(inner.values()):
            return set()
        chosen: set[str] = set()
        for unit, paths in inner.items():
            below = self.children(unit[0], children[unit]).values()
            chosen |= paths or {p for c in below for p in self.same_class(c)} or {unit[0]}
        return chosen

    def same_class(self, children: dict[ModuleRun, list[int]]) -> set[str]:
        """Children whose class at least two of them have."""
        classes: dict[str, list[str]] = {}
        for path, invocation in children:
            name = self.invocations[invocation].class_name if invocation >= 0 else ""
            classes.setdefault(name, []).append(path)
        return {path for name, same in classes.items() if name and len(same) >= 2 for path in same}


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


def canonical(ops: list[Op], graph: FlatGraph, numbers: dict[int, int]) -> tuple[Hashable, ...]:
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
        if op.target == USER_BACKWARD and op.args[5] != -1:  # numbered over the whole model
            pair = numbers.setdefault(-2 - int(op.args[5]), len(numbers))  # type: ignore[arg-type]
            operands = (*operands[:5], pair, *operands[6:])
        named = tuple((k, number(a)) for k, a in sorted(op.kwargs.items()))
        results = tuple(
            None if r < 0 else (numbers.setdefault(r, len(numbers)), graph.types[r])
            for r in op.results
        )
        lines.append((op.target, operands, named, results))
    return tuple(lines)
