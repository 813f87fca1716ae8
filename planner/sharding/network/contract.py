"""Exact contraction: choices that touch at most two pairwise flows disappear into one table.

A choice between two flows becomes a flow between its neighbours, one at the end of a flow becomes
seconds of its neighbour's labels, and one that has a single label fixes a row, a column or a copy
that must be made. What disappeared is read back by choosing the best label between its neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
import numpy as np

from .labels import Ints
from .moves import Floats
from .network import End, Flow, Network

Table = tuple[Floats, Ints, End]  # seconds [place of the choice, place of the neighbour], ends


class Gone(msgspec.Struct, frozen=True):
    """A choice that was contracted: its seconds, and the tables that led to its neighbours."""

    choice: int
    seconds: Floats
    tables: tuple[Table, ...]

    def label(self, labels: list[int]) -> int:
        total = self.seconds
        for table, place, other in self.tables:
            total = total + table[place, other.place[labels[other.choice]]]
        return int(total.argmin())


class Contracted(msgspec.Struct, frozen=True):
    """The smaller network, the choices that stayed, and those that went, in order."""

    network: Network
    stayed: tuple[int, ...]
    gone: tuple[Gone, ...]
    choices: int

    def labels(self, found: list[int]) -> list[int]:
        """Labels of all choices from labels of those that stayed."""
        labels = [0] * self.choices
        for choice, label in zip(self.stayed, found, strict=True):
            labels[choice] = label
        for gone in reversed(self.gone):
            labels[gone.choice] = gone.label(labels)
        return labels


def contract(network: Network, cells: int) -> Contracted:
    """Contract every choice for which at most `cells` sums are formed; bytes stay untouched."""
    return _Contraction(network, cells).run()


class _Contraction:
    def __init__(self, network: Network, cells: int) -> None:
        self.network, self.cells = network, cells
        self.seconds = list(network.seconds)
        self.flows: dict[int, Flow] = dict(enumerate(network.flows))
        self.around: list[set[int]] = [set() for _ in self.seconds]
        for number, flow in self.flows.items():
            for end in flow.ends:
                self.around[end.choice].add(number)
        self.gone: list[Gone] = []
        self.made = len(self.flows)
        self.turns: dict[int, tuple[Floats, Floats]] = {}
        self.products: dict[Hashable, tuple[Floats, Floats, Floats]] = {}

    def run(self) -> Contracted:
        waiting = list(range(len(self.seconds)))[::-1]
        left = set(waiting)
        while waiting:
            choice = waiting.pop()
            if choice not in left or not self.may_go(choice):
                continue
            self.fix(choice)
            tables = self.tables(choice)
            if tables is None:
                continue
            left.discard(choice)
            waiting += self.remove(choice, tables)
        return self.result(sorted(left))

    def may_go(self, choice: int) -> bool:
        return not self.network.bytes[choice].any()

    def fix(self, choice: int) -> None:
        """A user with one label wants one copy: the maker pays it, the others find it there."""
        if len(self.seconds[choice]) > 1:
            return
        for number in sorted(self.around[choice]):
            flow = self.flows[number]
            if len(flow.users) == 1 or flow.maker.choice == choice:
                continue
            wanted = sorted({int(u.place[0]) for u in flow.users if u.choice == choice})
            maker, seconds = flow.maker, flow.seconds.copy()
            for want in wanted:
                paid = flow.seconds[:, want][maker.place]
                self.seconds[maker.choice] = self.seconds[maker.choice] + paid
                seconds[:, want] = 0.0
            users = tuple(u for u in flow.users if u.choice != choice)
            self.around[choice].discard(number)
            self.flows[number] = Flow(seconds, maker, users)
            if not users:
                self.around[maker.choice].discard(number)
                del self.flows[number]

    def tables(self, choice: int) -> list[Table] | None:
        """The choice's flows as tables towards its neighbours; None where it must stay."""
        found: list[Table] = []
        for number in sorted(self.around[choice]):
            flow = self.flows[number]
            if len(flow.users) > 1 or flow.maker.choice == flow.users[0].choice:
                return None
            if flow.maker.choice == choice:
                found.append((flow.seconds, flow.maker.place, flow.users[0]))
            else:
                found.append((self.turned(flow.seconds), flow.users[0].place, flow.maker))
        labels = len(self.seconds[choice])
        if labels == 1 or len(found) < 2:
            return found
        (one, _, _), (other, _, _) = found[:2]
        sums = labels * one.shape[1] * other.shape[1]
        return found if len(found) == 2 and sums <= self.cells else None

    def turned(self, table: Floats) -> Floats:
        """The transpose; one object per table, kept with it, so that products can be shared."""
        return self.turns.setdefault(id(table), (table, table.T))[1]

    def remove(self, choice: int, tables: list[Table]) -> list[int]:
        """Take a choice out; its neighbours, which may go now."""
        self.gone.append(Gone(choice, self.seconds[choice], tuple(tables)))
        for number in sorted(self.around[choice]):
            for end in self.flows.pop(number).ends:
                if end.choice != choice:
                    self.around[end.choice].discard(number)
        self.around[choice].clear()
        if len(self.seconds[choice]) == 1 or len(tables) < 2:
            for table, place, other in tables:
                least = (table[place] + self.seconds[choice][:, None]).min(axis=0)
                if len(tables) > 1:
                    least = least - self.seconds[choice][0]
                self.seconds[other.choice] = self.seconds[other.choice] + least[other.place]
        else:
            self.join(self.seconds[choice], tables)
        return [other.choice for _, _, other in tables]

    def join(self, seconds: Floats, tables: list[Table]) -> None:
        """One flow between two neighbours: the least over the labels of what stood between."""
        (one, at_one, left), (two, at_two, right) = tables
        key = (id(one), at_one.tobytes(), seconds.tobytes(), id(two), at_two.tobytes())
        if key not in self.products:
            table = _product(one, at_one, seconds, two, at_two)
            self.products[key] = (table, one, two)  # the factors live on: their ids are in the key
        table = self.products[key][0]
        if left.choice == right.choice:
            self.seconds[left.choice] = self.seconds[left.choice] + table[left.place, right.place]
            return
        number = self.made = self.made + 1
        self.flows[number] = Flow(table, left, (right,))
        self.around[left.choice].add(number)
        self.around[right.choice].add(number)

    def result(self, stayed: list[int]) -> Contracted:
        number = {choice: i for i, choice in enumerate(stayed)}

        def end(old: End) -> End:
            return End(number[old.choice], old.place)

        flows = tuple(
            Flow(f.seconds, end(f.maker), tuple(map(end, f.users)))
            for _, f in sorted(self.flows.items())
        )
        network = Network(
            tuple(self.seconds[c] for c in stayed),
            tuple(self.network.bytes[c] for c in stayed),
            tuple(self.network.parts[c] for c in stayed),
            flows,
            self.network.memory_bytes,
        )
        return Contracted(network, tuple(stayed), tuple(self.gone), len(self.seconds))


def _product(one: Floats, at_one: Ints, seconds: Floats, two: Floats, at_two: Ints) -> Floats:
    """Least of `one[place, left] + seconds + two[place, right]` over the labels between."""
    best = np.full((one.shape[1], two.shape[1]), np.inf)
    pairs = at_one * len(two) + at_two
    order = np.lexsort((seconds, pairs))
    _, first = np.unique(pairs[order], return_index=True)
    for label in order[first]:
        through = two[at_two[label]] + seconds[label]
        np.minimum(best, one[at_one[label]][:, None] + through[None, :], out=best)
    return best
