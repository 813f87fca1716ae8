"""Both sides of a branch on a value as one graph: what they make of the same is selected by the value.

The step is recorded with either side. Up to the branch both recordings are equal, and from the place
where the sides meet again they are too; in between each does its own. One graph runs both, and what the
rest reads is `where(value, this side's, that side's)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from ...model.model import Argument, Op, Ref, map_refs
from ...model.tensor import TensorType
from ..graph import FlatGraph, replace, substitute
from ..operators.branch import BRANCH

WHERE = "aten.where.self"
FULL = "aten.full.default"


class Apart(Exception):
    """The sides of a branch do not meet again."""


@dataclass
class _Suffix:
    """How many operators two graphs share at their ends, and what these read from before, by side."""

    length: int = 0
    pairs: dict[tuple[int, Argument], None] = field(default_factory=dict)


@dataclass(frozen=True)
class Join:
    """What both sides of a branch become: operators put at `place`, and what later ones read instead.

    `written`: by name of a buffer that one side alone writes, the operator that chooses, at the end.
    """

    place: int
    ops: tuple[Op, ...]
    values: dict[int, int]
    written: dict[str, Op]


def joined(one: FlatGraph, other: FlatGraph, number: int, side: bool) -> Join:
    """How `one`, which has taken `side` at branch `number`, does what `other` does where it is not so.

    `one` gets the values of the operators. Without values, nothing needs to be chosen. Raises Apart
    where the two do not meet again.
    """
    at = next((i for i, op in enumerate(one.ops) if _is_branch(op, number)), None)
    before = _equal_before(one, other)
    if at is None or before <= at:
        raise Apart
    suffix = _equal_after(one, other, before)
    truth = one.ops[at].args[0]
    assert isinstance(truth, Ref)
    mover = _Mover(one, other, before, one.ops[at].scope)
    moved = [mover.moved(op) for op in other.ops[before : len(other.ops) - suffix.length]]
    choice = Choice(truth, side, Neutral(one, truth.value, side))
    for mine, theirs in suffix.pairs:
        mover.select(mine, theirs, choice)
    ops = (*moved, *mover.selects)
    return Join(len(one.ops) - suffix.length, ops, mover.chosen, mover.written(choice, suffix))


def merged(graph: FlatGraph, joins: Sequence[Join]) -> None:
    """Write joins into the graph that they were made for, and remove the marks of branches."""
    values: dict[int, int] = {}
    ops: list[Op] = []
    for place in range(len(graph.ops) + 1):
        for join in joins:
            if join.place == place and join.values:
                ops += [substitute(op, values) for op in join.ops]
                values |= join.values
        ops += [substitute(op, values) for op in graph.ops[place : place + 1]]
    for name, op in (pair for join in joins for pair in join.written.items()):
        before = next(v for v, p in graph.parameters.items() if p.name == name)
        ops.append(substitute(op, {before: graph.updates.get(name, before)} | values))
        graph.updates[name] = op.results[0]
    graph.ops = [op for op in ops if op.target != BRANCH]
    graph.loss = values.get(graph.loss, graph.loss)
    graph.returned = tuple(values.get(v, v) for v in graph.returned)
    graph.updates = {name: values.get(v, v) for name, v in graph.updates.items()}


def _is_branch(op: Op, number: int) -> bool:
    return op.target == BRANCH and op.args[1] == number


def _equal_before(one: FlatGraph, other: FlatGraph) -> int:
    """How many operators are equal from the beginning, values by number."""
    count = 0
    for a, b in zip(one.ops, other.ops, strict=False):
        if replace(a, scope="") != replace(b, scope=""):
            break
        count += 1
    return count


def _equal_after(one: FlatGraph, other: FlatGraph, before: int) -> _Suffix:
    """What is equal from the end on."""
    suffix = _Suffix()
    outputs = [(one.loss, other.loss), *zip(one.returned, other.returned, strict=False)]
    outputs += [(v, other.updates[n]) for n, v in one.updates.items() if n in other.updates]
    if len(one.returned) != len(other.returned):
        raise Apart
    suffix.pairs = {(a, Ref(b)): None for a, b in outputs}
    most = min(len(one.ops), len(other.ops)) - before
    for a, b in zip(one.ops[::-1][:most], other.ops[::-1][:most], strict=True):
        read = _reads(a, b)
        if read is None or not _same_types(one, a, other, b) or not _consistent(suffix, a, b):
            break
        made = set(zip(a.results, map(Ref, b.results), strict=True))
        suffix.pairs = {pair: None for pair in suffix.pairs if pair not in made}
        suffix.pairs.update(dict.fromkeys(read))
        suffix.length += 1
    return suffix


def _same_types(one: FlatGraph, a: Op, other: FlatGraph, b: Op) -> bool:
    return [one.types[r] if r >= 0 else None for r in a.results] == [
        other.types[r] if r >= 0 else None for r in b.results
    ]


def _consistent(suffix: _Suffix, a: Op, b: Op) -> bool:
    """Whether the later operators read two results in the same places."""
    partner = dict(zip(a.results, b.results, strict=True))
    back = {theirs: mine for mine, theirs in partner.items()}
    return all(
        (mine not in partner or theirs == Ref(partner[mine]))
        and (not isinstance(theirs, Ref) or theirs.value not in back or back[theirs.value] == mine)
        for mine, theirs in suffix.pairs
    )


def _reads(a: Op, b: Op) -> list[tuple[int, Argument]] | None:
    """What two operators read in the same places; None where they are not the same."""
    if a.target != b.target or a.kwargs.keys() != b.kwargs.keys():
        return None
    pairs: list[tuple[int, Argument]] = []
    same = _align(a.args, b.args, pairs) and all(
        _align(a.kwargs[name], b.kwargs[name], pairs) for name in a.kwargs
    )
    return pairs if same else None


def _align(a: Argument, b: Argument, pairs: list[tuple[int, Argument]]) -> bool:
    if isinstance(a, Ref):
        pairs.append((a.value, b))
        return isinstance(b, Ref | int | float)
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return all(_align(x, y, pairs) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


class _Mover:
    """Takes operators of `other` over into `one`; both are equal `before` an operator."""

    def __init__(self, one: FlatGraph, other: FlatGraph, before: int, scope: str) -> None:
        self.one, self.other, self.scope = one, other, scope
        made = [r for op in other.ops[:before] for r in op.results if r >= 0]
        self.names = {v: v for v in (*other.inputs, *made)} | {other.key: one.key}
        by_name = {p.name: v for v, p in one.parameters.items() if p.kind != "constant"}
        self.names |= {v: by_name[p.name] for v, p in other.parameters.items() if p.name in by_name}
        self.chosen: dict[int, int] = {}
        self.selects: list[Op] = []

    def name(self, value: int) -> int:
        """The value of `one` that is this one of `other`; a constant is added."""
        if value not in self.names:
            self.names[value] = self.constant(value)
        return self.names[value]

    def constant(self, value: int) -> int:
        parameter = self.other.parameters.get(value)
        if parameter is None:
            raise Apart
        known = self.one.parameters
        same = (
            v for v, p in known.items() if (p.type, p.values) == (parameter.type, parameter.values)
        )
        equal = next((v for v in same if known[v].kind == "constant"), None)
        if equal is not None:
            return equal
        names = {p.name for p in known.values()}
        name = next(n for i in range(len(names) + 1) if (n := f"constant_{i}") not in names)
        added = self.one.value(parameter.type)
        known[added] = msgspec.structs.replace(parameter, name=name)
        return added

    def moved(self, op: Op) -> Op:
        results = tuple(-1 if r < 0 else self.one.value(self.other.types[r]) for r in op.results)
        renamed = replace(
            op,
            args=tuple(map_refs(a, lambda v: Ref(self.name(v))) for a in op.args),
            kwargs={k: map_refs(a, lambda v: Ref(self.name(v))) for k, a in op.kwargs.items()},
            results=results,
            scope=self.scope,
        )
        self.names.update(zip(op.results, results, strict=True))
        return renamed

    def select(self, mine: int, theirs: Argument, choice: Choice) -> None:
        """Choose between two values, where they are two."""
        type_ = self.one.types[mine]
        if isinstance(theirs, Ref):
            value = self.name(theirs.value)
            if (
                value == mine
                or self.same_constant(mine, value)
                or choice.neutral.leaves(mine, value)
            ):
                return
            if self.one.types[value] != type_:
                raise Apart
        elif type_.shape == ():
            value = self.emit(FULL, ((), theirs), type_, {"dtype": f"dtype:{type_.dtype}"})
        else:
            raise Apart
        if mine in self.chosen:
            raise Apart
        sides = (Ref(mine), Ref(value)) if choice.side else (Ref(value), Ref(mine))
        self.chosen[mine] = self.emit(WHERE, (choice.truth, *sides), type_, {})

    def written(self, choice: Choice, suffix: _Suffix) -> dict[str, Op]:
        """The choice between a buffer as one side writes it and as it was, by name."""
        for a, b in zip(
            self.one.ops[::-1], self.other.ops[: -suffix.length - 1 : -1], strict=False
        ):
            self.names.update(zip(b.results, a.results, strict=True))
        before = {p.name: v for v, p in self.one.parameters.items()}
        chosen: dict[str, Op] = {}
        for name in sorted(self.one.updates.keys() ^ self.other.updates.keys()):
            mine = self.one.updates.get(name, before[name])
            theirs = (
                self.name(self.other.updates[name]) if name in self.other.updates else before[name]
            )
            if choice.neutral.leaves(mine, theirs):
                continue
            sides = (mine, theirs) if choice.side else (theirs, mine)
            result = self.one.value(self.one.types[mine])
            args = (choice.truth, *map(Ref, sides))
            chosen[name] = Op(WHERE, args, {}, (result,), self.scope)
        return chosen

    def same_constant(self, mine: int, value: int) -> bool:
        one, other = self.one.parameters.get(mine), self.one.parameters.get(value)
        if one is None or other is None or not one.kind == other.kind == "constant":
            return False
        return (one.type, one.values) == (other.type, other.values)

    def emit(
        self,
        target: str,
        args: tuple[Argument, ...],
        type_: TensorType,
        kwargs: dict[str, Argument],
    ) -> int:
        result = self.one.value(type_)
        self.selects.append(Op(target, args, kwargs, (result,), self.scope))
        return result


VIEWS = {
    f"aten.{name}.default"
    for name in (
        "view",
        "reshape",
        "expand",
        "unsqueeze",
        "permute",
        "clone",
        "_unsafe_view",
        "alias",
        "detach",
    )
} | {"aten._to_copy.default", "aten.sum.dim_IntList", "aten.flatten.using_ints"}


class Choice(NamedTuple):
    """A boolean, the side that one graph takes by it, and when that side changes nothing."""

    truth: Ref
    side: bool
    neutral: Neutral


class Neutral:
    """Whether what is done where a mask is true anywhere changes nothing where it is true nowhere.

    Then the branch on that says nothing, and no value needs to be known of the whole batch.
    """

    def __init__(self, graph: FlatGraph, truth: int, side: bool) -> None:
        self.ops = {r: op for op in graph.ops for r in op.results}
        mask, positive = self.asked(truth)
        self.mask = mask if positive == side else None

    def asked(self, value: int) -> tuple[int | None, bool]:
        """The mask whose being true anywhere a value says, or with False denies."""
        op = self.ops.get(value)
        if op is None:
            return None, True
        operand = next(iter(op.operands()), None)
        name = op.target.split(".")[1]
        if operand is None:
            return None, True
        if name in ("view", "reshape", "_to_copy", "squeeze", "detach"):
            return self.asked(operand)
        if name == "logical_not" or (name == "eq" and op.args[1:] == (0,)):
            mask, positive = self.asked(operand)
            return mask, not positive
        if (name in ("gt", "ne") and op.args[1:] == (0,)) or (name == "ge" and op.args[1:] == (1,)):
            return self.asked(operand)
        if name in ("any", "sum") and len(op.args) == 1:
            return self.source(operand), True
        return None, True

    def source(self, value: int) -> int:
        """What a value is a view of, or a sum of parts of."""
        while (op := self.ops.get(value)) is not None and op.target in VIEWS:
            value = next(iter(op.operands()))
        return value

    def leaves(self, mine: int, theirs: int) -> bool:
        """Whether one value is another, written only where the mask is true."""
        if self.mask is None:
            return False
        seen = 0
        while mine != theirs and seen < 64:
            op, seen = self.ops.get(mine), seen + 1
            if op is None:
                return False
            operands = [a.value for a in op.args if isinstance(a, Ref)]
            if op.target == WHERE and len(operands) == 3 and self.source(operands[0]) == self.mask:
                mine = operands[2]
            elif op.target == "aten.add.Tensor" and len(operands) == 2 and self.zero(operands[1]):
                mine = operands[0]
            else:
                return False
        return mine == theirs

    def zero(self, value: int) -> bool:
        """Whether a value is nothing but zeros outside of the mask."""
        op = self.ops.get(self.source(value))
        if op is None or not op.target.startswith("aten.where."):
            return False
        first, *_, last = op.args
        filled = self.ops.get(last.value) if isinstance(last, Ref) else None
        empty = last == 0 or (
            filled is not None and filled.args[-1] == 0 and not filled.results[1:]
        )
        return isinstance(first, Ref) and self.source(first.value) == self.mask and bool(empty)
