"""Time and memory of one candidate: a strategy, a number of micro-batches, a memory variant.

What runs is what is priced: no communication hides behind compute in the generated programs yet, so
none does here unless the practice of the entries says so. Times add up as 1F1B runs them, then the
gradient synchronisation and the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from ...cost_model.communication.data_parallel import BatchAxes
from ...cost_model.communication.stage_transfer import Crossing, Hop, boundary_links, hops
from ...cost_model.memory.peak import (
    Waiting,
    host_bytes,
    memory_terms,
    micro_batches_in_flight,
    pieces_in_flight,
)
from ...cost_model.operators.roofline import stream_seconds
from ...cost_model.pipeline.closed_form import Ends, pipeline_seconds
from ...cost_model.pipeline.overlap import exposed
from ...ir.compression.program import Program
from ...ir.compression.registry import LEADERS
from ...ir.devices.cluster import Cluster, Link
from ...ir.model import Model
from ...ir.plan.plan import Memory, Optimizer, Stage
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import Share
from ...ir.program import SMALL_BYTES
from ...ir.tensor import ITEM_BYTES
from ..candidate import Candidate, Cut, Decision, Part, StageSums, end_shares, pieces
from ..compression.collectives import Compressor
from .call_classes import alike
from .call_prices import Prices
from .function_prices import Entries, Entry, Word
from .reshard_prices import Passages
from .stage_partition import even, partition
from .stage_sums import Sums


class Evaluator:
    """Prices candidates of one model on one cluster for one global batch and optimizer."""

    def __init__(
        self,
        entries: Entries,
        global_batch: int,
        optimizer: Optimizer,
        compressor: Compressor | None = None,
    ) -> None:
        self.entries, self.global_batch, self.optimizer = entries, global_batch, optimizer
        self.model: Model = entries.model
        self.cluster: Cluster = entries.cluster
        self.calls = self.model.calls
        self.once = self.model.once()
        self.prices = Prices(entries, global_batch)
        self.sums = Sums(entries)
        self.alike = alike(self.model, entries.early)
        self.item = ITEM_BYTES[self.model.parameters[0].type.dtype] if self.model.parameters else 4
        self.gradient_scale = (entries.practice.gradient_item_bytes or self.item) / self.item
        self.compressor = compressor
        sizes = [p.type.bytes for p in self.model.parameters if p.trainable]
        self.trained = sum(sizes)
        self.small = sum(n for n in sizes if n < SMALL_BYTES) / max(self.trained, 1)
        self.passages = Passages(entries)
        self.between: dict[int, list[Link]] = {}
        self.along: dict[Strategy, BatchAxes] = {}
        self.hop_programs: dict[tuple[Word, int, int, int], Program | None] = {}
        self.cuts: dict[tuple[Word, int, int, Memory, int, int], Cut | None] = {}

    def candidate(
        self, strategy: Strategy, micro_batches: int, memory: Memory, chunks: int = 1
    ) -> Candidate | None:
        """The priced candidate with so many pieces per stage, or None where the model cannot be split
        so."""
        ways = strategy.batch_ways()
        if self.global_batch % (ways * micro_batches) or (
            micro_batches > 1 and not self.prices.in_time
        ):
            return None
        batch = self.global_batch // ways
        key = (strategy.inside, batch, micro_batches, memory, strategy.stages, chunks)
        if key not in self.cuts:
            self.cuts[key] = self.cut(*key)
        cut = self.cuts[key]
        if cut is None:
            return None
        decision = Decision(0, len(self.calls), strategy, memory)
        return self.priced((decision,), strategy, micro_batches, cut, chunks)

    def priced(
        self,
        decisions: tuple[Decision, ...],
        strategy: Strategy,
        micro_batches: int,
        cut: Cut,
        chunks: int,
    ) -> Candidate:
        """The candidate of one strategy. Equal stages take as long, and the first of them waits with
        the most micro-batches."""
        axes, number = self.axes(strategy), len(cut.kind_of)
        firsts = map(cut.kind_of.index, range(len(cut.kinds)))
        most = [
            self.waiting(number, first, micro_batches, saved)
            for first, saved in zip(firsts, cut.saved, strict=True)
        ]
        timed = [self.times(sums, axes, micro_batches) for sums in cut.kinds]
        busy = [timed[kind][0] + timed[kind][1] for kind in cut.kind_of]
        peak = max(
            sum(amount for _, amount in self.memory([(strategy, sums)], micro_batches, waiting))
            for sums, waiting in zip(cut.kinds, most, strict=True)
        )
        syncs = [sync for *_, sync in timed]
        return self.assemble(
            decisions, micro_batches, cut.bounds, chunks, busy, cut.sends, cut.ends, syncs, peak
        )

    def stages(self, candidate: Candidate) -> tuple[Stage, ...]:
        """The stages of a candidate, each with its times and its memory by term."""
        entries = self.prices.of(candidate.decisions, candidate.micro_batches)
        moved = self.passages.seconds(candidate.decisions, candidate.micro_batches)
        assert entries is not None
        assert moved is not None
        made = self.mixed_stages(
            candidate.decisions,
            candidate.bounds,
            candidate.chunks,
            candidate.micro_batches,
            entries,
            moved,
        )
        assert made is not None
        return made

    def links(self, stages: int) -> list[Link]:
        """The links between so many stages."""
        if stages not in self.between:
            self.between[stages] = boundary_links(stages, self.cluster)
        return self.between[stages]

    def hops(self, crossings: Sequence[Crossing], program: Program | None) -> list[Hop]:
        """Every stage's hop to the next one."""
        return hops(crossings, self.links(len(crossings)), program, self.cluster.device)

    def hop_program(
        self, word: Word, batch: int, micro_batches: int, stages: int
    ) -> Program | None:
        """How values go from a stage to the next, as pays over a typical boundary."""
        key = word, batch, micro_batches, stages
        if stages == 1 or not self.entries.activations.sends:
            return None
        if key not in self.hop_programs:
            samples, rounds = batch // micro_batches, micro_batches + stages - 1
            borders = [self.sums.crossing(at, samples, word) for at in range(1, len(self.calls))]
            typical = sorted(borders, key=lambda c: c.bytes)[len(borders) // 2]
            slowest = min(self.links(stages)[:-1], key=lambda x: x.bandwidth_bytes_per_second)
            entries = self.prices.like(word, batch, micro_batches, "keep")
            work = sum(self.prices.seconds(entries)) / stages * rounds if entries else 0.0
            self.hop_programs[key] = self.entries.activations.hop(
                typical, slowest, self.cluster.device, rounds, work
            )
        return self.hop_programs[key]

    def waiting(
        self, stages: int, number: int, micro_batches: int, saved: Sequence[float] = ()
    ) -> float:
        """Micro-batches of a stage that wait for backward at the worst moment; `saved` bytes of each of
        its pieces, where there are several."""
        if len(saved) > 1:
            return pieces_in_flight(stages, number, micro_batches, saved)
        after, chunks = stages - 1 - number, self.entries.practice.chunks
        return micro_batches_in_flight(after, stages, micro_batches, chunks)

    def axes(self, strategy: Strategy) -> BatchAxes:
        if strategy not in self.along:
            self.along[strategy] = self.compressed_axes(strategy)
        return self.along[strategy]

    def compressed_axes(self, strategy: Strategy) -> BatchAxes:
        """The batch axes of a strategy, compressed as pays for an average stage."""
        item, scale, chosen = self.item, self.gradient_scale, {}
        leader = LEADERS.get(self.optimizer.name)
        if self.compressor is not None:
            ways = strategy.stages * prod(n for r, n in strategy.axes if ROLES[r].operators)
            work = self.prices.floor_seconds(strategy, 1, 1)
            chosen = self.compressor.choose(
                strategy,
                self.cluster,
                scale,
                item,
                self.trained // ways,
                self.small,
                max(1, len(self.calls) // strategy.stages),
                work,
            )
        return BatchAxes(strategy, self.cluster, scale, item, chosen, leader)

    def mixed(
        self,
        decisions: tuple[Decision, ...],
        bounds: Sequence[int],
        micro_batches: int,
        chunks: int = 1,
    ) -> Candidate | None:
        """The priced candidate of different decisions for different calls, its pieces cut at
        `bounds`; None where a call cannot be split so or a value cannot pass."""
        entries = self.prices.of(decisions, micro_batches)
        if entries is None:
            return None
        moved = self.passages.seconds(decisions, micro_batches)
        if moved is None or not self.ties_agree(decisions):
            return None
        stages = self.mixed_stages(decisions, bounds, chunks, micro_batches, entries, moved)
        if stages is None:
            return None
        ways = self.hops(
            [Crossing(s.transfer_bytes, s.large) for s in stages],
            self.hop_program_of(decisions, micro_batches),
        )
        return self.assemble(
            decisions,
            micro_batches,
            tuple(bounds),
            chunks,
            [s.forward_seconds + s.backward_seconds for s in stages],
            [hop.seconds for hop in ways],
            end_shares(self.prices.seconds(entries), [s.pieces for s in stages]),
            [s.sync_seconds for s in stages],
            max(s.peak_bytes for s in stages),
        )

    def mixed_stages(
        self,
        decisions: tuple[Decision, ...],
        bounds: Sequence[int],
        chunks: int,
        micro_batches: int,
        entries: list[Entry],
        moved: Sequence[float],
    ) -> tuple[Stage, ...] | None:
        """The stages of decisions; None where one has nothing to do."""
        stages, program = [], self.hop_program_of(decisions, micro_batches)
        dealt = pieces(bounds, chunks)
        for number, own_pieces in enumerate(dealt):
            parts: dict[Strategy, list[int]] = {}
            for (first, last), d in product(own_pieces, decisions):
                own = range(max(first, d.first), min(last, d.last))
                parts.setdefault(d.strategy, []).extend(own)
            sums = [
                (
                    strategy,
                    self.sums.of(
                        entries,
                        own_pieces,
                        strategy.inside,
                        self.global_batch // strategy.batch_ways() // micro_batches,
                        own,
                    ).encoded(program),
                )
                for strategy, own in parts.items()
                if any(i not in self.once for i in own)
            ]
            if not sums:
                return None
            saved = self.sums.saved(entries, own_pieces)
            waiting = self.waiting(len(dealt), number, micro_batches, saved)
            passed = sum(sum(moved[first:last]) for first, last in own_pieces)
            stages.append(self.stage(sums, micro_batches, waiting, passed))
        return tuple(stages)

    def hop_program_of(self, decisions: Sequence[Decision], micro_batches: int) -> Program | None:
        """The program of decisions: what pays for the first, all send alike."""
        first = decisions[0].strategy
        batch = self.global_batch // first.batch_ways()
        return self.hop_program(first.inside, batch, micro_batches, first.stages)

    def blend(
        self, decisions: tuple[Decision, ...], micro_batches: int, chunks: int = 1
    ) -> Candidate | None:
        """Different decisions for different calls, in pieces as even as can be."""
        entries = self.prices.of(decisions, micro_batches)
        if entries is None:
            return None
        bounds = partition(self.prices.seconds(entries), decisions[0].strategy.stages * chunks)
        return None if bounds is None else self.mixed(decisions, bounds, micro_batches, chunks)

    def ties_agree(self, decisions: tuple[Decision, ...]) -> bool:
        """Whether calls that share a parameter have one strategy."""
        found: dict[str, Strategy] = {}
        return all(
            found.setdefault(name, d.strategy) == d.strategy
            for d in decisions
            for i in range(d.first, d.last)
            if self.sums.shares[i]
            for name in self.calls[i].parameters
        )

    def cut(
        self, word: Word, batch: int, micro_batches: int, memory: Memory, stages: int, chunks: int
    ) -> Cut | None:
        """The calls cut into stages, summed up: the same for every role of the batch axes."""
        entries = self.prices.like(word, batch, micro_batches, memory)
        if entries is None:
            return None
        seconds = self.prices.seconds(entries)
        if self.entries.practice.even_layers:
            bounds = even([c.function in self.prices.repeated for c in self.calls], stages)
        else:
            bounds = partition(seconds, stages * chunks)
        if bounds is None:
            return None
        dealt, program = (
            pieces(bounds, chunks),
            self.hop_program(word, batch, micro_batches, stages),
        )
        codes: dict[object, int] = {}
        faces = [
            codes.setdefault((number, id(entry)), len(codes))
            for number, entry in zip(self.alike, entries, strict=True)
        ]
        kinds: dict[object, int] = {}
        sums: list[StageSums] = []
        saved = []
        kind_of = []
        for own in dealt:
            face = tuple(
                (tuple(faces[first:last]), self.sums.crossings[last], last == len(faces))
                for first, last in own
            )
            if face not in kinds:
                kinds[face] = len(kinds)
                members = [i for first, last in own for i in range(first, last)]
                saved.append(self.sums.saved(entries, own))
                made = self.sums.of(entries, own, word, batch // micro_batches, members)
                sums.append(made.encoded(program))
            kind_of.append(kinds[face])
        sends = [hop.seconds for hop in self.hops([sums[k].crossing for k in kind_of], program)]
        ends = end_shares(seconds, dealt)
        return Cut(tuple(bounds), tuple(sums), tuple(kind_of), tuple(sends), ends, tuple(saved))

    def assemble(
        self,
        decisions: tuple[Decision, ...],
        micro_batches: int,
        bounds: tuple[int, ...],
        chunks: int,
        busy: list[float],
        sends: Sequence[float],
        ends: Ends,
        syncs: list[float],
        peak: int,
    ) -> Candidate:
        """The candidate whose stages are `busy` per micro-batch."""
        practice = self.entries.practice
        pipeline = pipeline_seconds(
            busy,
            sends,
            micro_batches,
            max(chunks, practice.chunks),
            practice.overlap,
            self.cluster.device.ranks_per_processor,
            ends if chunks > 1 else (),
        )
        step = pipeline + max(syncs)
        bubble = 1 - micro_batches * sum(busy) / (len(busy) * pipeline) if pipeline else 0.0
        return Candidate(decisions, micro_batches, bounds, step, bubble, peak, chunks)

    def memory(
        self, parts: Sequence[Part], micro_batches: int, waiting: float
    ) -> tuple[tuple[str, int], ...]:
        """Bytes by term of a stage where so many of the micro-batches wait."""
        return memory_terms(
            [(sums.bytes(self.item), self.axes(strategy)) for strategy, sums in parts],
            self.optimizer,
            self.entries.practice,
            Waiting(waiting, micro_batches, len(parts[0][1].pieces)),
            self.cluster.device,
        )

    def stage(
        self, parts: Sequence[Part], micro_batches: int, waiting: float, moved: float
    ) -> Stage:
        """A stage from its parts. `moved` seconds per micro-batch pass between parts, half of them
        forward."""
        timed = [self.times(sums, self.axes(s), micro_batches) for s, sums in parts]
        forward, backward, sent, sync = (sum(column) for column in zip(*timed, strict=True))
        leaving = max((sums.crossing for _, sums in parts), key=lambda c: c.bytes)
        shares = tuple(Share(strategy, sums.bytes(self.item)) for strategy, sums in parts)
        return Stage(
            parts[0][1].pieces,
            float(waiting),
            forward + moved / 2,
            backward + moved / 2,
            sent + moved,
            sync,
            leaving.bytes,
            self.memory(parts, micro_batches, waiting),
            shares,
            moved,
            host_bytes([s.bytes for s in shares], waiting),
            leaving.large,
        )

    def times(
        self, sums: StageSums, axes: BatchAxes, micro_batches: int
    ) -> tuple[float, float, float, float]:
        """Seconds of a part: forward and backward per micro-batch, of them sent, and per step."""
        practice = self.entries.practice
        small = sums.small_bytes / max(sums.trained_bytes, 1)
        gather = sum(n * axes.gather_seconds(held, small) for held, n in sums.call_bytes)
        scatter = sum(n * axes.scatter_seconds(held, small) for held, n in sums.call_bytes)
        reduce = axes.reduce_seconds(sums.trained_bytes, sums.summed_bytes, small)
        back = axes.return_seconds(sums.trained_bytes, small)
        forward, backward = sums.forward_seconds, sums.backward_seconds
        backward += self.accumulate_seconds(sums.trained_bytes, axes) if micro_batches > 1 else 0.0
        shown = [gather, gather + scatter, reduce, back]
        if practice.overlap:
            work = (forward, backward, backward, forward)
            shown = [exposed(c, s) for c, s in zip(work, shown, strict=True)]
        sync = shown[2] + shown[3] + self.optimizer_seconds(sums.trained_bytes, axes)
        sent = sums.communication_seconds + shown[0] + shown[1]
        return forward + shown[0], backward + shown[1], sent, sync + sums.once_seconds

    def accumulate_seconds(self, held: int, axes: BatchAxes) -> float:
        """Read and write gradients to add a micro-batch's."""
        touched = 2 * held * self.gradient_scale * axes.part("gradient")
        return stream_seconds("accumulate", touched, self.cluster.device)

    def optimizer_seconds(self, held: int, axes: BatchAxes) -> float:
        touched = axes.kept(held * (2 + self.optimizer.states), "optimizer")
        return stream_seconds(self.optimizer.name, touched * 2, self.cluster.device)
