"""Record a forward, and refuse one that is another one at the next step.

What a forward changes outside tensors (a counter, a flag, a list) is there when it runs again. So
where the first recording changed something, a second goes on from that state: it must record the same
operators, and find every number as it left it. All of it is put back afterwards.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...errors import TraceError
from ...passes import Pass
from ..export import LossFunction, Recording, Step, record
from ..locate import line_text
from ..outputs import ForwardOutputs
from ..recorded.compared import meeting, same_but_for_constants
from ..torch_private import is_fake
from ..values.branches import Branches
from ..values.explore import Explorer, Meeting, OtherSide
from ..values.numbers import UnknownNumber
from .random_state import GlobalRandom, lines_that_draw
from .snapshot import SCALARS, Leaf, State

Change = tuple[Leaf | None, Leaf | None]
# paths that a model's own forward changes without changing what it computes, noted by its last trace
STEADY: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()
REMEDY = (
    "a compiled program would keep the value of the first step. Make it a tensor registered by "
    "register_buffer and changed in place, or compute it outside the model and pass it in the batch "
    "as a tensor"
)


class Export(Pass[nn.Module, Recording], frozen=True):
    """Record the forward pass and the loss of a module on a batch, as it is at every step.

    `traced`: samples in dimension 0 of batched tensors; `precision`: record as after `model.to(…)`;
    `outputs`: record the model's outputs instead, noted there.
    """

    batch: Any
    loss_fn: LossFunction | None
    traced: int
    precision: str | None = None
    outputs: ForwardOutputs | None = None
    name = "export"

    def apply(self, value: nn.Module) -> Recording:
        options = self.traced, self.precision
        step = Step(self.batch, self.loss_fn, self.outputs)
        return record_steady(
            value, self.loss_fn, lambda branches: record(value, step, branches, *options)
        )


def record_steady(
    model: nn.Module, loss_fn: LossFunction | None, record_once: Callable[[Branches], Recording]
) -> Recording:
    """What a recording of the model gives; raises TraceError where the next step would give something
    else. Where code asks for a value that nobody knows, it is recorded again and `converting`."""
    untold: frozenset[str] = frozenset()

    def converting(branches: Branches) -> Recording:
        branches.converting, branches.known.untold = True, untold
        return record_once(branches)

    try:
        return _record_steady(model, loss_fn, record_once)
    except UnknownNumber as error:
        untold = error.changed
        while True:
            try:
                return _record_steady(model, loss_fn, converting)
            except TraceError as again:
                if not isinstance(again, UnknownNumber) or again.changed <= untold:
                    raise error from None
                untold |= again.changed


def _record_steady(
    model: nn.Module, loss_fn: LossFunction | None, record_once: Callable[[Branches], Recording]
) -> Recording:
    before, randoms = State(model, loss_fn), GlobalRandom()
    try:
        with lines_that_draw() as lines:
            recording = _explored(record_once, before.restore)
        _refuse_drawn(before, randoms, lines)
        after = State(model, loss_fn)
        changed = before.changes(after)
        STEADY[model] = frozenset(leaf.path for pair in changed for leaf in pair if leaf)
        if changed:
            second = _record_again(model, changed, record_once)
            _give_values(second, recording.constants_of_step)
            moved = _moved(after, State(model, loss_fn))
            same = _records_the_same(recording, second) or same_but_for_constants(recording, second)
            _refuse_unsteady(model, changed, moved, same)
    finally:
        before.restore()
        randoms.restore()
    return recording


def _give_values(recording: Recording, values: Callable[[Any], Tensor | None]) -> None:
    """Give constants of an earlier step, which the model keeps, their values."""
    for node in recording.graph.graph.nodes:
        value = (
            values(getattr(recording.graph, str(node.target))) if node.op == "get_attr" else None
        )
        if value is not None:
            setattr(recording.graph, str(node.target), value)


def _explored(
    record_once: Callable[[Branches], Recording], restore: Callable[[], None]
) -> Recording:
    recording, others, branches = Explorer(record_once, restore, _meeting).explored()
    recording.others, recording.constants_of_step = others, branches.known.value
    return recording


def _meeting(recording: Recording, side: OtherSide) -> Meeting:
    """How a recording and one with the other side of a branch go on."""
    if _equal(recording.graph, side.recording.graph):
        return "same"
    return meeting(recording, side)


def _records_the_same(one: Recording, other: Recording) -> bool:
    return _equal(one.graph, other.graph)


def _refuse_drawn(before: State, randoms: GlobalRandom, lines: list[str]) -> None:
    drawn = before.drawn() or randoms.drawn()
    if drawn:
        where = f"{lines[0]}: " if lines else ""
        raise TraceError(
            f"{where}the forward draws from {drawn}: a compiled program would keep the first step's "
            "number. Draw it outside the model and pass it in the batch as a tensor"
        )


def _record_again(
    model: nn.Module, changed: list[Change], record_once: Callable[[Branches], Recording]
) -> Recording:
    """The recording of the next step, which begins from what the first one left."""
    try:
        return _explored(record_once, lambda: None)
    except TraceError as error:
        raise TraceError(f"{described(changed, model)}; run again, it fails: {error}") from error


def _refuse_unsteady(
    model: nn.Module, changed: list[Change], moved: list[Change], same: bool
) -> None:
    """Refuse numbers that moved again, and a step that was not the `same` after the change."""
    if moved:
        raise TraceError(f"{described(moved, model)}: {REMEDY}")
    if not same:
        raise TraceError(
            f"{described(changed, model)}, and then computes something else at the next step: {REMEDY} "
            "(or, if only the first forward differs, run the model once before tracing)"
        )


def _moved(after: State, again: State) -> list[Change]:
    """Scalars that a second forward changed, told by their paths."""
    old = {leaf.path: leaf for leaf in after.leaves.values()}
    changes = after.changes(again)
    found = [(old.get(now.path), now) for _, now in changes if now is not None]
    return [
        (one, other)
        for one, other in found
        if isinstance(other.value, SCALARS) and (one is None or one.text != other.text)
    ]


def _equal(one: torch.fx.GraphModule, other: torch.fx.GraphModule) -> bool:
    if str(one.graph) != str(other.graph):
        return False
    names = [str(n.target) for n in one.graph.nodes if n.op == "get_attr"]
    return all(_same_constant(getattr(one, n), getattr(other, n)) for n in names)


def _same_constant(one: Tensor, other: Tensor) -> bool:
    return one is other if is_fake(one) or is_fake(other) else torch.equal(one, other)


def described(changes: list[Change], model: nn.Module) -> str:
    """Which values a forward changes, from what to what, and the line that does it."""
    ranked = sorted(changes, key=lambda c: 0 if any(_scalar(leaf) for leaf in c) else 1)
    parts = []
    for one, other in ranked[:3]:
        path = (one or other).path  # type: ignore[union-attr]
        texts = [leaf.text if leaf else "nothing" for leaf in (one, other)]
        parts.append(f"{path} from {texts[0]} to {texts[1]}")
    first = (ranked[0][0] or ranked[0][1]).path  # type: ignore[union-attr]
    where = _writer(first, model)
    return f"{where}the forward changes {', '.join(parts)}" + " …" * (len(ranked) > 3)


def _scalar(leaf: Leaf | None) -> bool:
    return leaf is not None and isinstance(leaf.value, SCALARS)


def _writer(path: str, model: nn.Module) -> str:
    """`file:line: code: ` of a line in the model's classes that assigns the last name of a path."""
    names = re.findall(r"[A-Za-z_]\w*", path.split(":")[0])
    if not names:
        return ""
    writes = re.compile(
        rf"\b{names[-1]}\b[\w.\[\]'\"]*(\s*[-+*/|&%]?=[^=]|\.(append|add|update|pop)\()"
    )
    for kind in _classes(model):
        try:
            lines, start = inspect.getsourcelines(kind.forward)
            file = inspect.getsourcefile(kind.forward) or ""
        except (OSError, TypeError):
            continue
        for number, line in enumerate(lines):
            if writes.search(line):
                return f"{line_text(file, start + number)}: "
    return ""


def _classes(model: nn.Module) -> Iterable[type]:
    return dict.fromkeys(type(m) for m in model.modules())
