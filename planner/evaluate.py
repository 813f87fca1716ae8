"""Time and memory of one candidate: a strategy, a number of micro-batches, a memory variant.

What runs is what is priced: no communication hides behind compute in the generated programs yet, so
none does here unless the practice of the entries says so. Times add up as 1F1B runs them, then the
gradient synchronisation and the optimizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from ..cost_model.batch_axes import BatchAxes
from ..cost_model.compute import stream_seconds
from ..cost_model.memory import memory_terms, micro_batches_in_flight
from ..cost_model.overlap import exposed
from ..cost_model.pipeline import boundary_seconds, pipeline_seconds
from ..cost_model.table import FunctionCost
from ..ir.amounts import Share
from ..ir.cluster import Cluster
from ..ir.model import Model
from ..ir.plan import Memory, Optimizer, Stage
from ..ir.strategy import Strategy
from ..ir.tensor import ITEM_BYTES
from .candidate import Candidate, Decision, Part, StageSums
from .entries import Entries, Entry, Word
from .partition import even, partition
from .passages import Passages


class Evaluator:
    """Prices candidates of one model on one cluster for one global batch and optimizer."""

    def __init__(self, entries: Entries, global_batch: int, optimizer: Optimizer) -> None:
        self.entries, self.global_batch, self.optimizer = entries, global_batch, optimizer
        self.model: Model = entries.model
        self.cluster: Cluster = entries.cluster
        self.calls = self.model.calls
        sizes = {p.name: p.type.bytes for p in self.model.parameters}
        self.parameters = [{n: sizes[n] for n in call.parameters} for call in self.calls]
        trained = {p.name for p in self.model.parameters if p.trainable}
        self.trained = [
            sum(size for name, size in held.items() if name in trained) / max(sum(held.values()), 1)
            for held in self.parameters
        ]
        users = Counter(name for call in self.calls for name in set(call.parameters))
        self.shares = [any(users[n] > 1 for n in call.parameters) for call in self.calls]
        counts = Counter(call.function for call in self.calls)
        self.repeated = {name for name, count in counts.items() if count > 1}
        self.once = self.model.once()
        self.crossings: dict[int, tuple[int, int]] = {}
        self.in_time = model_in_time(entries, self.once)
        self.item = ITEM_BYTES[self.model.parameters[0].type.dtype] if self.model.parameters else 4
        self.gradient_scale = (entries.practice.gradient_item_bytes or self.item) / self.item
        self.passages = Passages(entries)
        self.along: dict[Strategy, BatchAxes] = {}
        self.cuts: dict[tuple[Word, int, int, Memory, int], tuple[StageSums, ...] | None] = {}

    def variant(self, call: int, memory: Memory) -> Memory:
        """Only repeated layers recompute: they are where the activations are."""
        taken = call % self.entries.practice.recompute_every == 0
        return memory if taken and self.calls[call].function in self.repeated else "keep"

    def candidate(
        self, strategy: Strategy, micro_batches: int, memory: Memory
    ) -> Candidate | None:
        """The priced candidate, or None where the model cannot be split so."""
        ways = strategy.batch_ways()
        if self.global_batch % (ways * micro_batches) or (micro_batches > 1 and not self.in_time):
            return None
        key = (strategy.inside, self.global_batch // ways, micro_batches, memory, strategy.stages)
        if key not in self.cuts:
            self.cuts[key] = self.cut(*key)
        sums = self.cuts[key]
        if sums is None:
            return None
        stages = self.equal_stages(strategy, micro_batches, sums)
        decision = Decision(0, len(self.calls), strategy, memory)
        return self.assemble((decision,), micro_batches, stages)

    def equal_stages(
        self, strategy: Strategy, micro_batches: int, sums: tuple[StageSums, ...]
    ) -> tuple[Stage, ...]:
        """The stages of one strategy; equal ones differ in what waits, the others' times are new."""
        made: list[Stage] = []
        known: dict[tuple[int, float], int] = {}
        for number, part in enumerate(sums):
            waiting = self.waiting(len(sums), number, micro_batches)
            alike = known.setdefault((part.kind, waiting), number)
            if alike == number:
                like = known.setdefault((part.kind, -1.0), number)
                like_stage = made[like] if like != number else None
                made.append(self.stage([(strategy, part)], micro_batches, waiting, 0.0, like_stage))
            else:
                made.append(replace(made[alike], first=part.first, last=part.last))
        return tuple(made)

    def waiting(self, stages: int, number: int, micro_batches: int) -> float:
        """Micro-batches of a stage that wait for backward at the worst moment."""
        after, chunks = stages - 1 - number, self.entries.practice.chunks
        return micro_batches_in_flight(after, stages, micro_batches, chunks)

    def axes(self, strategy: Strategy) -> BatchAxes:
        if strategy not in self.along:
            self.along[strategy] = BatchAxes(strategy, self.cluster, self.gradient_scale)
        return self.along[strategy]

    def mixed(
        self, decisions: tuple[Decision, ...], bounds: Sequence[int], micro_batches: int
    ) -> Candidate | None:
        """The priced candidate of different decisions for different calls, its stages cut at
        `bounds`; None where a call cannot be split so or a value cannot pass."""
        entries = self.entries_of(decisions, micro_batches)
        if entries is None:
            return None
        moved = self.passages.seconds(decisions, micro_batches)
        if moved is None or not self.ties_agree(decisions):
            return None
        stages = []
        for number, (first, last) in enumerate(pairwise(bounds)):
            parts: dict[Strategy, list[int]] = {}
            for d in decisions:
                own = range(max(first, d.first), min(last, d.last))
                parts.setdefault(d.strategy, []).extend(own)
            sums = [
                (strategy, self.sums(entries, first, last, strategy.inside,
                                     self.global_batch // strategy.batch_ways() // micro_batches, own))
                for strategy, own in parts.items()
                if any(i not in self.once for i in own)
            ]  # fmt: skip
            if not sums:
                return None
            waiting = self.waiting(len(bounds) - 1, number, micro_batches)
            stages.append(self.stage(sums, micro_batches, waiting, sum(moved[first:last])))
        return self.assemble(decisions, micro_batches, tuple(stages))

    def blend(self, decisions: tuple[Decision, ...], micro_batches: int) -> Candidate | None:
        """Different decisions for different calls, in stages as even as can be."""
        entries = self.entries_of(decisions, micro_batches)
        if entries is None:
            return None
        seconds = [e.cost.forward.seconds + e.cost.backward.seconds for e in entries]
        bounds = partition(seconds, decisions[0].strategy.stages)
        return None if bounds is None else self.mixed(decisions, bounds, micro_batches)

    def entries_of(
        self, decisions: tuple[Decision, ...], micro_batches: int
    ) -> list[Entry] | None:
        """The price of every call; None where one cannot be split so."""
        if micro_batches > 1 and not self.in_time:
            return None
        entries: list[Entry] = []
        for decision in decisions:
            samples, left = divmod(self.global_batch, decision.strategy.batch_ways())
            if left or samples % micro_batches:
                return None
            for i in range(decision.first, decision.last):
                local = samples if i in self.once else samples // micro_batches
                variant = self.variant(i, decision.memory)
                name, word = self.calls[i].function, decision.strategy.inside
                entry = self.entries.entry(name, word, local, variant)
                if entry is None:
                    return None
                entries.append(entry)
        return entries

    def ties_agree(self, decisions: tuple[Decision, ...]) -> bool:
        """Whether calls that share a parameter have one strategy."""
        found: dict[str, Strategy] = {}
        return all(
            found.setdefault(name, d.strategy) == d.strategy
            for d in decisions
            for i in range(d.first, d.last)
            if self.shares[i]
            for name in self.calls[i].parameters
        )

    def cut(
        self, word: Word, batch: int, micro_batches: int, memory: Memory, stages: int
    ) -> tuple[StageSums, ...] | None:
        """The calls cut into stages, summed up: the same for every role of the batch axes."""
        entries = []
        for i, call in enumerate(self.calls):
            local = batch if i in self.once else batch // micro_batches
            entry = self.entries.entry(call.function, word, local, self.variant(i, memory))
            if entry is None:
                return None
            entries.append(entry)
        seconds = [e.cost.forward.seconds + e.cost.backward.seconds for e in entries]
        if self.entries.practice.even_layers:
            bounds = even([c.function in self.repeated for c in self.calls], stages)
        else:
            bounds = partition(seconds, stages)
        if bounds is None:
            return None
        made = [
            self.sums(entries, first, last, word, batch // micro_batches, range(first, last))
            for first, last in pairwise(bounds)
        ]
        kinds: list[StageSums] = []
        for sums in made:
            alike = replace(sums, first=0, last=0)
            if alike not in kinds:
                kinds.append(alike)
        return tuple(
            replace(sums, kind=kinds.index(replace(sums, first=0, last=0))) for sums in made
        )

    def sums(
        self, entries: list[Entry], first: int, last: int, word: Word, samples: int,
        members: Sequence[int],
    ) -> StageSums:  # fmt: skip
        """Those calls of a stage added up that are `members`: all of one strategy."""
        own = [i for i in members if i not in self.once]
        calls = [entries[i].cost for i in own]
        once = [entries[i].cost for i in self.once] if own[:1] == self.own(first, last)[:1] else []
        local = [e.cost.held_bytes for e in entries]
        trained = [round(n * part) for n, part in zip(local, self.trained, strict=True)]
        summed = {
            role: self.held_bytes(own, [e.summed_bytes.get(role, 0) for e in entries])
            for role, _ in word
        }
        return StageSums(
            first=first,
            last=last,
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
            last_bytes=entries[last - 1].cost.saved_bytes if last == len(entries) == own[-1] + 1 else 0,
            transient_bytes=max(
                (max(c.forward.peak_bytes, c.backward.peak_bytes) for c in calls), default=0
            ),
            once_bytes=sum(c.saved_bytes + c.forward.peak_bytes for c in once),
            crossing_bytes=self.crossing(last, samples, word) if last - 1 in members else 0,
        )

    def own(self, first: int, last: int) -> list[int]:
        """The calls of a stage that run for every micro-batch."""
        return [i for i in range(first, last) if i not in self.once]

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

    def assemble(
        self, decisions: tuple[Decision, ...], micro_batches: int, stages: tuple[Stage, ...]
    ) -> Candidate:
        practice = self.entries.practice
        busy = [s.forward_seconds + s.backward_seconds for s in stages]
        sends = boundary_seconds(
            [s.transfer_bytes for s in stages], self.cluster.devices // len(stages), self.cluster
        )
        pipeline = pipeline_seconds(busy, sends, micro_batches, practice.chunks, practice.overlap)
        step = pipeline + max(s.sync_seconds for s in stages)
        bubble = 1 - micro_batches * sum(busy) / (len(busy) * pipeline) if pipeline else 0.0
        peak = max(stage.peak_bytes for stage in stages)
        return Candidate(decisions, micro_batches, stages, step, bubble, peak)

    def stage(
        self,
        parts: Sequence[Part],
        micro_batches: int,
        waiting: float,
        moved: float,
        like: Stage | None = None,
    ) -> Stage:
        """One stage from its parts, of which `waiting` micro-batches wait. `moved` seconds per
        micro-batch pass between parts, half of them forward. `like`: one of the same times."""
        along = [self.axes(s) for s, _ in parts]
        memory = memory_terms(
            [(sums.bytes(self.item), a) for (_, sums), a in zip(parts, along, strict=True)],
            self.optimizer,
            self.entries.practice,
            waiting,
            self.cluster.device.runtime_overhead_bytes,
        )
        shares = tuple(Share(strategy, sums.bytes(self.item)) for strategy, sums in parts)
        first, last = parts[0][1].first, parts[0][1].last
        if like is not None:
            return replace(like, first=first, last=last, memory=memory)
        timed = [
            self.times(sums, axes, micro_batches)
            for (_, sums), axes in zip(parts, along, strict=True)
        ]
        forward, backward, sent, sync = (sum(column) for column in zip(*timed, strict=True))
        return Stage(
            first,
            last,
            forward + moved / 2,
            backward + moved / 2,
            sent + moved,
            sync,
            sum(sums.crossing_bytes for _, sums in parts),
            memory,
            shares,
            moved,
        )

    def times(
        self, sums: StageSums, axes: BatchAxes, micro_batches: int
    ) -> tuple[float, float, float, float]:
        """Seconds of a part: forward and backward per micro-batch, of them sent, and per step."""
        practice = self.entries.practice
        gather = sum(n * axes.gather_seconds(held) for held, n in sums.call_bytes)
        scatter = sum(n * axes.scatter_seconds(held) for held, n in sums.call_bytes)
        reduce = axes.reduce_seconds(sums.trained_bytes, sums.summed_bytes)
        back = axes.return_seconds(sums.trained_bytes)
        forward, backward = sums.forward_seconds, sums.backward_seconds
        backward += self.accumulate_seconds(sums.trained_bytes, axes) if micro_batches > 1 else 0.0
        shown = [gather, gather + scatter, reduce, back]
        if practice.overlap:
            work = (forward, backward, backward, forward)
            shown = [exposed(c, s) for c, s in zip(work, shown, strict=True)]
        sync = shown[2] + shown[3] + self.optimizer_seconds(sums.trained_bytes, axes)
        sent = sums.communication_seconds + shown[0] + shown[1]
        return forward + shown[0], backward + shown[1], sent, sync + sums.once_seconds

    def held_bytes(self, calls: list[int], local_bytes: list[int]) -> int:
        """Local bytes of the parameters that these calls hold, shared ones once."""
        seen: set[str] = set()
        total = 0
        for i in calls:
            amount = local_bytes[i]
            if self.shares[i]:
                held = self.parameters[i]
                new = sum(size for name, size in held.items() if name not in seen)
                amount = amount * new // max(sum(held.values()), 1)
                seen.update(held)
            total += amount
        return total

    def crossing(self, at: int, samples: int, word: Word) -> int:
        """Bytes that one device sends per micro-batch of `samples` over the boundary at a call."""
        if at not in self.crossings:
            self.crossings[at] = self.crossing_bytes(at)
        split, whole = self.crossings[at]
        return (split // self.entries.token_ways(word) + whole) * samples // self.model.batch

    def crossing_bytes(self, at: int) -> tuple[int, int]:
        """Whole bytes of the values that cross the boundary at a call: with tokens, without."""
        used = {name for call in self.calls[at:] for name in call.arguments}
        split = whole = 0
        for call in self.calls[:at]:
            function = self.entries.functions[call.function]
            if function.differentiable:
                for name, output in zip(call.results, function.outputs, strict=True):
                    amount = function.types[output.value].bytes if name in used else 0
                    carries = self.entries.flow.token_shard(function, output.value) is not None
                    split, whole = (split + amount, whole) if carries else (split, whole + amount)
        return split, whole

    def accumulate_seconds(self, held: int, axes: BatchAxes) -> float:
        """Read and write gradients to add a micro-batch's."""
        touched = 2 * held * self.gradient_scale / axes.pieces("gradient")
        return stream_seconds("accumulate", touched, self.cluster.device)

    def optimizer_seconds(self, held: int, axes: BatchAxes) -> float:
        touched = held * (2 + self.optimizer.states) // axes.pieces("optimizer")
        return stream_seconds(self.optimizer.name, touched * 2, self.cluster.device)


def model_in_time(entries: Entries, once: frozenset[int]) -> bool:
    """Whether the batch can be split into micro-batches at all."""
    names = {c.function for i, c in enumerate(entries.model.calls) if i not in once}
    return entries.model.batch % 2 == 0 and all(entries.in_time(name) for name in names)
