"""Collectives beside operators: each starts when its operand is ready and is awaited at its first use.

    %3 = aten.mm.default %2 %1             %3 = aten.mm.default %2 %1
    %4 = comm.all_reduce %3 tp             %9 = comm.start all_reduce %3 tp
    %5 = aten.relu.default %4        →     %6 = aten.mm.default %2 %0      # stood below, reads no %4
    %6 = aten.mm.default %2 %0             %4 = comm.wait %9
                                           %5 = aten.relu.default %4

Operators move only while the tensors on their way are few enough, and where the peak of live bytes grows
by no more than one collective's. Values, and so results, are those of the order before. Slices of
weights travel one at a time, each beside the product that reads the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise

from msgspec.structs import replace

from ..analysis.liveness import is_view, lifetimes, storage_roots
from ..devices.cluster import Device
from ..model.model import LocalLists, Op, Ref
from ..model.tensor import TensorType
from ..passes import Pass

IN_FLIGHT_SHARE = 32  # tensors that travel beside other work take one in so many bytes of a device
STARTED = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})
START, WAIT = "comm.start", "comm.wait"


class Overlap(Pass[LocalLists, LocalLists], frozen=True):
    """Start collectives early and await them late, while at most `in_flight_bytes` are on their way.

    Those over `synchronous` axes, which send compressed, end before what follows; where some are over
    `sliced` axes, the next one starts when the one before has arrived.
    """

    in_flight_bytes: int
    synchronous: tuple[str, ...] = ()
    sliced: tuple[str, ...] = ()
    name = "overlap"

    @staticmethod
    def on(device: Device) -> Overlap:
        """What programs for a device do unless they are compiled otherwise."""
        return Overlap(in_flight_bytes(device))

    def apply(self, value: LocalLists) -> LocalLists:
        return overlap(value, self)


def in_flight_bytes(device: Device) -> int:
    """Bytes of tensors that a program lets travel beside other work, unless it is compiled otherwise: a
    share of the device's memory, so that weights of a layer are gathered ahead on large devices."""
    return device.memory_bytes // IN_FLIGHT_SHARE


def overlap(lists: LocalLists, options: Overlap) -> LocalLists:
    """The lists with collectives in two halves where something runs between them."""
    function, halves, parts = lists.function, lists.halves, lists.parts
    types = list(function.types)
    states = {i.value for i in function.state_inputs()}
    gradients = {i.gradient for i in function.inputs if i.gradient is not None}
    outputs = {o.value for o in function.outputs} | {i.value for i in function.inputs}

    def rewritten(ops: tuple[Op, ...], live_out: set[int]) -> tuple[Op, ...]:
        return tuple(_Overlapped(ops, types, live_out | states, options).ops())

    halves = replace(
        halves,
        forward=rewritten(halves.forward, outputs | {*halves.saved}),
        backward=rewritten(halves.backward, gradients) if parts is None else halves.backward,
    )
    if parts is not None:
        parts = replace(
            parts,
            inputs=rewritten(parts.inputs, gradients | {*parts.saved}),
            weights=rewritten(parts.weights, gradients),
        )
    return LocalLists(replace(function, types=tuple(types)), halves, parts)


class _Overlapped:
    """One list of operators; the types of values on their way are added to `types`."""

    def __init__(
        self, ops: tuple[Op, ...], types: list[TensorType], live_out: set[int], options: Overlap
    ) -> None:
        self.before, self.types, self.live_out, self.options = ops, types, live_out, options
        self.views = {op.results for op in ops if is_view(op, types)}
        self.roots = storage_roots(len(types), filter(self.free, ops))

    def ops(self) -> Iterator[Op]:
        """The operators in the better order of the two that does not need more memory than the one
        before and a collective's."""
        sent = [self.sent_bytes(op) for op in self.before if self.starts(op)]
        if not sent:
            return iter(self.before)
        most = 1 if any(map(self.sliced, self.before)) else len(sent)
        moved = _collectives_first(self.before, self.starts, self.free, most)
        limit_bytes = self.peak_bytes(self.before, {}) + max(sent)
        for order in ([self.before[i] for i in moved], list(self.before)):
            waits = self.waits(order)
            if waits and self.peak_bytes(order, waits) <= limit_bytes:
                return self.split(order, waits)
        return iter(self.before)

    def free(self, op: Op) -> bool:
        """Whether an operator is a view, which takes no time."""
        return op.results in self.views

    def starts(self, op: Op) -> bool:
        """Whether an operator is a collective that can run beside others."""
        kind = op.target.removeprefix("comm.")
        return kind in STARTED and op.args[1] not in self.options.synchronous

    def sliced(self, op: Op) -> bool:
        """Whether an operator gathers or sums a slice."""
        return self.starts(op) and op.args[1] in self.options.sliced

    def waits(self, ops: Sequence[Op]) -> dict[int, int]:
        """By position of a collective, that of the operator before which it is awaited."""
        first: dict[int, int] = {}
        for at in reversed(range(len(ops))):
            first.update(dict.fromkeys(ops[at].operands(), at))
        waits: dict[int, int] = {}
        slices = [at for at, op in enumerate(ops) if self.sliced(op)]
        next_slice = dict(pairwise(slices))
        for at, op in enumerate(ops):
            until = first.get(op.results[0], len(ops)) if op.results else at
            until = min(until, next_slice.get(at, until))
            if not self.starts(op) or all(map(self.free, ops[at + 1 : until])):
                continue
            flying = [self.sent_bytes(ops[a]) for a, end in waits.items() if end > at]
            if sum(flying) + self.sent_bytes(op) <= self.options.in_flight_bytes:
                waits[at] = until
        return waits

    def sent_bytes(self, op: Op) -> int:
        """Bytes of the tensors that a collective keeps: what it sends and what arrives."""
        return sum(self.types[v].bytes for v in (*op.operands(), *op.results) if v >= 0)

    def split(self, ops: Sequence[Op], waits: dict[int, int]) -> Iterator[Op]:
        """The operators, with collectives in two where they are awaited later."""
        pending: dict[int, list[Op]] = {}
        for at, op in enumerate(ops):
            yield from pending.pop(at, ())
            if at not in waits:
                yield op
                continue
            handle = len(self.types)
            self.types.append(self.types[op.results[0]])
            kind = op.target.removeprefix("comm.")
            yield Op(START, (kind, *op.args), op.kwargs, (handle,), op.scope)
            wait = Op(WAIT, (Ref(handle),), {}, op.results, op.scope)
            pending.setdefault(waits[at], []).append(wait)
        yield from pending.pop(len(ops), ())

    def peak_bytes(self, ops: Sequence[Op], waits: dict[int, int]) -> int:
        """The most bytes of values at once: they live until their last use, what a collective sends
        until that is awaited."""
        lasting = {self.roots[v] for v in self.live_out if v < len(self.roots)}
        change = [0] * (len(ops) + 2)
        for value, (born, last) in lifetimes(ops, self.roots, waits).items():
            change[max(born, 0)] += self.types[value].bytes
            if value not in lasting:
                change[min(last, len(ops)) + 1] -= self.types[value].bytes
        return _highest(change)


def _highest(changes: Iterable[int]) -> int:
    highest = total = 0
    for change in changes:
        total += change
        highest = max(highest, total)
    return highest


def _collectives_first(
    ops: Sequence[Op], starts: Callable[[Op], bool], free: Callable[[Op], bool], most: int
) -> list[int]:
    """Positions in an order that comes to collectives early: what none of them needs runs where the
    next one would have to wait for the one before. One starts where the results of no more than `most`
    have not been read; with one, just before what reads that."""
    maker = {r: i for i, op in enumerate(ops) for r in op.results if r >= 0}
    needs = [{maker[v] for v in op.operands() if v in maker} for op in ops]
    order: list[int] = []
    done, flying = set[int](), set[int]()

    def place(numbers: Collection[int], below: int) -> None:
        """Append operators; before one that waits, those `below` a position that need not."""
        for number in numbers:
            if number in done:
                continue
            if not flying.isdisjoint(needs[number]):
                fill(below)
                flying.difference_update(needs[number])
            order.append(number)
            done.add(number)

    def fill(below: int) -> None:
        """Append operators that need nothing on its way, and the views that they read."""
        for number in range(below):
            if number in done or starts(ops[number]) or free(ops[number]):
                continue
            missing = sorted({number, *_ancestors(number, needs)} - done)
            reads = set[int]().union(*(needs[n] for n in missing))
            if all(free(ops[n]) for n in missing[:-1]) and reads.isdisjoint(flying):
                order.extend(missing)
                done.update(missing)

    readers: dict[int, int] = {}
    for number in reversed(range(len(ops))):
        readers.update(dict.fromkeys(needs[number], number))
    for number in [i for i, op in enumerate(ops) if starts(op)]:
        while len(flying) > most:
            earliest = min(flying)
            reader = readers.get(earliest, earliest)
            place(sorted({reader, *_ancestors(reader, needs)} - done), reader)
            flying.discard(earliest)
        if flying and most == 1:
            fill(min(readers.get(min(flying), number), number))
        place(sorted(_ancestors(number, needs) - done), number)
        place([number], number)
        flying.add(number)
    place(range(len(ops)), len(ops))
    return order


def _ancestors(number: int, needs: Sequence[set[int]]) -> set[int]:
    """All that an operator needs, directly or not."""
    ancestors, open_ = set[int](), list(needs[number])
    while open_:
        one = open_.pop()
        if one not in ancestors:
            ancestors.add(one)
            open_ += needs[one]
    return ancestors
