"""Calls of a stage added up: seconds, bytes held and saved, bytes that leave it.

Parameters and values that several calls share count once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

from ...cost_model.communication.stage_transfer import Crossing
from ...cost_model.operators.function_cost import FunctionCost
from ...ir.plan.plan import Span
from ...ir.plan.workload import Large
from ...ir.program import SMALL_BYTES
from ...ir.tensor import ITEM_BYTES, TensorType
from ..candidate import StageSums
from .function_prices import Entries, Entry, Word
from .live_bytes import moments

NONE = Crossing(0, Large())


class Sums:
    """Adds up calls of one model, given the price of every call."""

    def __init__(self, entries: Entries) -> None:
        self.entries, self.model = entries, entries.model
        self.calls, self.once = self.model.calls, self.model.once()
        sizes = {p.name: p.type.bytes for p in self.model.parameters}
        self.parameters = [{n: sizes[n] for n in call.parameters} for call in self.calls]
        trained = {p.name for p in self.model.parameters if p.trainable}
        self.trained = [
            sum(size for name, size in held.items() if name in trained) / max(sum(held.values()), 1)
            for held in self.parameters
        ]
        self.small = [
            sum(size for name, size in held.items() if name in trained and size < SMALL_BYTES)
            / max(sum(held.values()), 1)
            for held in self.parameters
        ]
        users = Counter(name for call in self.calls for name in set(call.parameters))
        self.shares = [any(users[n] > 1 for n in call.parameters) for call in self.calls]
        # floating-point values over every boundary, and whether tokens do not cut them
        self.floats: list[list[tuple[TensorType, bool]]] = [[] for _ in range(len(self.calls) + 1)]
        self.crossings = self.crossing_bytes()
        self.large: dict[tuple[int, int, int], Large] = {}  # by boundary, samples and ways

    def of(
        self,
        entries: list[Entry],
        pieces: tuple[Span, ...],
        word: Word,
        samples: int,
        members: Sequence[int],
    ) -> StageSums:
        """Those calls of a stage added up that are `members`: all of one strategy."""
        own = [i for i in members if i not in self.once]
        calls = [entries[i].cost for i in own]
        once = [entries[i].cost for i in self.once] if own[:1] == self.own(pieces)[:1] else []
        local = [c.held_bytes for c in calls]
        trained = [round(c.held_bytes * self.trained[i]) for i, c in zip(own, calls, strict=True)]
        small = [round(c.held_bytes * self.small[i]) for i, c in zip(own, calls, strict=True)]
        summed = {
            role: self.held_bytes(own, [entries[i].summed_bytes.get(role, 0) for i in own])
            for role, _ in word
        }
        leaving, entering = (
            max(
                (self.crossing(at, samples, word) for at in ends),
                key=lambda c: c.bytes,
                default=NONE,
            )
            for ends in (
                [last for _, last in pieces if last - 1 in members],
                [first for first, _ in pieces if first in members],
            )
        )
        return StageSums(
            pieces=pieces,
            forward_seconds=sum(c.forward.seconds for c in calls),
            backward_seconds=sum(c.backward.seconds for c in calls),
            communication_seconds=sum(
                c.forward.communication_seconds + c.backward.communication_seconds for c in calls
            ),
            once_seconds=sum(c.forward.seconds for c in once),
            held_bytes=self.held_bytes(own, local),
            trained_bytes=self.held_bytes(own, trained),
            summed_bytes=summed,
            call_bytes=tuple(Counter(c.held_bytes for c in calls).items()),
            saved_bytes=sum(c.saved_bytes for c in calls) + self.between_bytes(own, calls),
            last_bytes=self.last_bytes(entries, own),
            moments=moments(
                [self.calls[i] for i in own],
                calls,
                trained,
                self.entries.early,
                self.entries.cluster.device.host_copies_hide,
            ),
            once_bytes=sum(c.saved_bytes + c.forward.peak_bytes + sum(c.ends[0]) for c in once),
            batch_bytes=self.batch_bytes(own, calls, entries),
            small_bytes=self.held_bytes(own, small),
            host_bytes=sum(c.host_bytes for c in calls),
            crossing_bytes=leaving.bytes,
            entering_bytes=entering.bytes,
            large=leaving.large,
            entering_large=entering.large,
        )

    def last_bytes(self, entries: list[Entry], own: Sequence[int]) -> int:
        """Bytes that the model's last call saves, if it is here; they become gradients at once."""
        return entries[-1].cost.saved_bytes if own[-1:] == [len(entries) - 1] else 0

    def saved(self, entries: list[Entry], pieces: Sequence[Span]) -> tuple[float, ...]:
        """Bytes that each piece of a stage leaves waiting per micro-batch, where there are several: all
        that it saves, but for the model's last call."""
        found = []
        for piece in pieces if len(pieces) > 1 else ():
            own = self.own([piece])
            costs = [entries[i].cost for i in own]
            waits = sum(c.saved_bytes for c in costs) + self.between_bytes(own, costs)
            found.append(float(waits - self.last_bytes(entries, own)))
        return tuple(found)

    def own(self, pieces: Sequence[Span]) -> list[int]:
        """The calls of a stage that run for every micro-batch."""
        return [i for first, last in pieces for i in range(first, last) if i not in self.once]

    def between_bytes(self, own: list[int], costs: list[FunctionCost]) -> int:
        """Bytes of the values between calls that backward reads, each once however many save it;
        what comes from the batch alone waits with the batch."""
        found: dict[str, int] = {}
        for i, cost in zip(own, costs, strict=True):
            call = self.calls[i]
            names = (*call.arguments, *call.results)
            sizes = (*cost.saved_arguments, *cost.saved_results)
            found.update((name, size) for name, size in zip(names, sizes, strict=True) if size)
        return sum(size for name, size in found.items() if name not in self.entries.early)

    def batch_bytes(
        self, own: list[int], costs: list[FunctionCost], entries: list[Entry]
    ) -> tuple[int, int]:
        """Bytes of a micro-batch of what comes from the batch alone and is read here, where it is a part
        of the whole, and of it of the batch itself."""
        whole = {
            name: size
            for i in self.once
            for name, size in zip(self.calls[i].results, entries[i].cost.ends[2], strict=True)
        }
        found = {
            name: size
            for i, cost in zip(own, costs, strict=True)
            for name, size in zip(self.calls[i].arguments, cost.ends[0], strict=True)
            if name in self.entries.early and size != whole.get(name)
        }
        return sum(found.values()), sum(n for name, n in found.items() if name not in whole)

    def held_bytes(self, calls: list[int], local_bytes: list[int]) -> int:
        """Local bytes of the parameters that these calls hold, shared ones once."""
        seen: set[str] = set()
        total = 0
        for i, amount in zip(calls, local_bytes, strict=True):
            if self.shares[i]:
                held = self.parameters[i]
                new = sum(size for name, size in held.items() if name not in seen)
                amount = amount * new // max(sum(held.values()), 1)
                seen.update(held)
            total += amount
        return total

    def crossing(self, at: int, samples: int, word: Word) -> Crossing:
        """What one device sends per micro-batch of `samples` over the boundary at a call."""
        (split, whole), ways = self.crossings[at], self.entries.token_ways(word)
        amount = (split // ways + whole) * samples // self.model.batch
        key = at, samples, ways
        if key not in self.large:
            self.large[key] = self.large_values(*key)
        return Crossing(amount, self.large[key])

    def large_values(self, at: int, samples: int, ways: int) -> Large:
        """What of it is large enough to travel compressed, where tokens are cut in so many ways."""
        local = [
            (whole.bytes // (1 if plain else ways) * samples // self.model.batch, whole)
            for whole, plain in self.floats[at]
        ]
        kept = [(n, ITEM_BYTES[whole.dtype]) for n, whole in local if n >= SMALL_BYTES]
        return Large(sum(n for n, _ in kept), sum(n // item for n, item in kept))

    def crossing_bytes(self) -> list[tuple[int, int]]:
        """For every boundary the whole bytes of the values that cross it: with tokens, without."""
        ends = {name: i for i, call in enumerate(self.calls) for name in call.arguments}
        change = [[0, 0] for _ in range(len(self.calls) + 1)]
        for i, call in enumerate(self.calls):
            function = self.entries.functions[call.function]
            if not function.differentiable:
                continue
            for name, output in zip(call.results, function.outputs, strict=True):
                last, kind = ends.get(name, i), function.types[output.value]
                plain = self.entries.flow.token_shard(function, output.value) is None
                if last > i:
                    change[i + 1][plain] += kind.bytes
                    change[last + 1][plain] -= kind.bytes
                for at in range(i + 1, last + 1 if kind.is_float else 0):
                    self.floats[at].append((kind, plain))
        columns = (accumulate(column) for column in zip(*change, strict=True))
        return list(zip(*columns, strict=True))
