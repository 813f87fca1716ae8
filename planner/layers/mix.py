"""Layer-wise mixes: equal layers of one plan run under several strategies and memory actions.

Uniform candidates that split the devices alike (the same model axes, batch degree, stages and
micro-batches) pass values between them without resharding. So layers of one function in one
stage are interchangeable, and only their numbers per choice are left to find: an integer program
of a few dozen variables per stage. Stages interact only in the step time, which grows with each
one's time per micro-batch and per step; each minimises the sum of both over a step, which is
exact for one stage. (Galvatron, Miao et al. 2022, calls this layer-wise hybrid parallelism.)

    stage 0   20 layers zero3, recompute │ 12 layers zero3, keep     fills the memory limit

Where a function is called so rarely that counts are coarse, a fraction of each of its weights may
be sharded over zero3 and the rest replicated (`FRACTIONS`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from ...cost_model.communication.data_parallel import BatchAxes
from ...cost_model.memory.peak import (
    MARGIN,
    InFlight,
    after_forward,
    between_calls,
    part_peak,
    part_terms,
)
from ...cost_model.pipeline.closed_form import fill_drain_seconds
from ...ir.plan.flat_shard import FULL, Fraction
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.plan import Span
from ...ir.plan.strategy import Strategy
from ...ir.plan.workload import StageBytes
from ..candidate import Candidate, Decision, end_chunk_shares, stage_model_chunks
from ..options import FRACTIONS
from ..pricing.candidate_pricer import CandidatePricer
from ..pricing.function_prices import CallPrice
from .assignment_counts import (
    AssignmentCounts,
    CallClass,
    CallCost,
    LayerChoice,
    StageSignature,
    best_counts,
    least_seconds,
)

CLOSE = 0.01  # of usable memory: less unused is not worth another trial
RARE = 3  # calls of a function in a stage; with more, counts are as fine as fractions
TRIES = 6  # trials, each with a limit corrected by the last one's real peak

Group = Sequence[Candidate]  # uniform candidates that split the devices alike


def groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Uniform candidates grouped by how they split the devices; the group with the fastest member
    first. Members that a faster one undercuts in memory are left out.
    """
    by_split: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        if len(candidate.decisions) > 1:
            continue
        (strategy,) = candidate.strategies
        key = (
            strategy.model_axes,
            strategy.batch_degree(),
            strategy.stages,
            candidate.micro_batches,
            candidate.chunks,
        )
        by_split.setdefault(key, []).append(candidate)
    useful = [_undominated(group) for group in by_split.values()]
    return sorted((g for g in useful if len(g) > 1), key=fastest)


def _undominated(group: Group) -> list[Candidate]:
    """Candidates that no faster one undercuts in memory.

    Offloading and chunking help some functions and not others, so each is compared with its like.
    """
    front: list[Candidate] = []
    least_bytes: dict[MemoryAction | None, int] = {}
    for candidate in sorted(group, key=lambda c: (c.step_seconds, c.peak_bytes, c.strategy_text)):
        (decision,) = candidate.decisions
        own_action = decision.memory if decision.memory.on_host or decision.memory.chunked else None
        if own_action not in least_bytes or candidate.peak_bytes < least_bytes[own_action]:
            least_bytes[own_action] = candidate.peak_bytes
            front.append(candidate)
    return front


def fastest(group: Group) -> float:
    """Step seconds of the fastest member; no mix of the group is faster."""
    return min(candidate.step_seconds for candidate in group)


class LayerMix:
    """The choices of a group, for layers in the stages of its fastest member.

    Calls of rare functions may also take `fractions` of weights in strategies that shard
    parameters.
    """

    def __init__(
        self, pricer: CandidatePricer, group: Group, fractions: Sequence[Fraction] = FRACTIONS
    ) -> None:
        self.pricer, self.group = pricer, group
        self.choices: list[LayerChoice] = [
            (d.strategy, d.memory) for c in group for d in c.decisions
        ]
        self.choices += [
            (replace(strategy, fraction=fraction), memory)
            for strategy, memory in self.choices
            for fraction in (
                fractions if strategy.supports_fraction and strategy.fraction == FULL else ()
            )
        ]
        self.fastest = min(group, key=lambda c: (c.step_seconds, c.strategy_text, c.memory_text))
        self.micro_batches = self.fastest.micro_batches
        self.chunks = self.fastest.chunks
        chunks_per_stage = stage_model_chunks(self.fastest.bounds, self.chunks)
        self.stages = [
            tuple(pricer.aggregator.calls_per_micro_batch(chunk_spans))
            for chunk_spans in chunks_per_stage
        ]
        self.prices_by_choice = [self.uniform_prices(*choice) for choice in self.choices]
        fastest_prices = self.prices_by_choice[group.index(self.fastest)]
        self.end_shares = end_chunk_shares(
            pricer.call_prices.seconds(fastest_prices), chunks_per_stage
        )
        calls_by_key: dict[object, list[_FunctionCalls]] = {}
        signature_by_key: dict[object, StageSignature] = {}
        self.signatures = []
        for number, chunk_spans in enumerate(chunks_per_stage):
            stage_key = tuple(
                (tuple(pricer.call_classes[first:last]), last == len(pricer.calls))
                for first, last in chunk_spans
            )
            saved = pricer.aggregator.saved_bytes(fastest_prices, chunk_spans)
            in_flight = pricer.in_flight(len(chunks_per_stage), number, self.micro_batches, saved)
            if stage_key not in calls_by_key:
                calls_by_key[stage_key] = list(self.function_calls(chunk_spans))
            if (stage_key, in_flight) not in signature_by_key:
                signature_by_key[stage_key, in_flight] = tuple(
                    self.call_classes(calls_by_key[stage_key], in_flight)
                )
            self.signatures.append(signature_by_key[stage_key, in_flight])

    def uniform_prices(self, strategy: Strategy, memory: MemoryAction) -> list[CallPrice]:
        """Prices of all calls under one choice."""
        batch = self.pricer.global_batch // strategy.batch_degree()
        prices = self.pricer.call_prices.uniform(
            strategy.model_axes, batch, self.micro_batches, memory
        )
        assert prices is not None
        return prices

    def function_calls(self, stage: tuple[Span, ...]) -> Iterator[_FunctionCalls]:
        """The calls of a stage by function, added up and timed under every choice."""
        pricer, stage_calls = self.pricer, self.pricer.aggregator.calls_per_micro_batch(stage)
        for name in dict.fromkeys(pricer.calls[i].function for i in stage_calls):
            calls = [i for i in stage_calls if pricer.calls[i].function == name]
            costs_by_choice = []
            for number, (strategy, _) in enumerate(self.choices):
                if strategy.fraction != FULL and len(calls) > RARE:
                    continue
                prices = self.prices_by_choice[number]
                samples = pricer.global_batch // strategy.batch_degree() // self.micro_batches
                cost = pricer.aggregator.cost(prices, stage, strategy.model_axes, samples, calls)
                axes = pricer.batch_axes(strategy)
                forward, backward, _, sync = pricer.stage_times(cost, axes, self.micro_batches)
                costs_by_choice.append(
                    (number, cost.bytes(pricer.item_bytes), axes, forward + backward, sync)
                )
            yield _FunctionCalls(name, calls, costs_by_choice)

    def call_classes(
        self, function_calls: Sequence[_FunctionCalls], in_flight: float
    ) -> Iterator[CallClass]:
        """Classes of interchangeable calls, with the cost of one call under every choice."""
        pricer = self.pricer
        for name, calls, costs_by_choice in function_calls:
            costs, n = [], len(calls)
            for _, stage_bytes, axes, seconds, sync in costs_by_choice:
                execution = pricer.function_prices.execution
                pipeline_state = InFlight(in_flight, self.micro_batches, self.chunks)
                idle_terms = between_calls(stage_bytes, axes, execution, pipeline_state)
                peak_terms = part_peak(
                    stage_bytes, axes, execution, pipeline_state, pricer.cluster.device
                )
                lasting_bytes, least_bytes = (
                    sum(part_terms(stage_bytes, axes, pricer.optimizer, execution, m).values()) / n
                    for m in (
                        idle_terms,
                        after_forward(stage_bytes, axes, execution, pipeline_state),
                    )
                )
                passing_bytes, host_bytes = (
                    max(sum(peak_terms) - sum(idle_terms), 0),
                    in_flight * stage_bytes.host_bytes / n,
                )
                costs.append(
                    CallCost(
                        seconds / n, sync / n, least_bytes, lasting_bytes, host_bytes, passing_bytes
                    )
                )
            shares_parameters = any(pricer.aggregator.shares_parameters[i] for i in calls)
            yield CallClass(
                name,
                n,
                tuple(costs),
                shares_parameters,
                tuple(number for number, *_ in costs_by_choice),
            )

    def lower_bound(self, memory_limit: int) -> float:
        """Lower bound of the step seconds of mixes within the memory limit.

        Every stage fills its memory as if layers were divisible, one of them has to synchronise,
        and its first micro-batch passes through the others.
        """
        usable_bytes = _usable_bytes(self.pricer, memory_limit)
        bounds = {
            signature: least_seconds(signature, self.micro_batches, usable_bytes)
            for signature in set(self.signatures)
        }
        micro_batch_seconds = [bounds[signature][0] for signature in self.signatures]
        other_stages = fill_drain_seconds(micro_batch_seconds, self.end_shares)
        step_seconds = max(
            bounds[signature][1] + other
            for signature, other in zip(self.signatures, other_stages, strict=True)
        )
        # ranks that wait leave a shared processor to others
        return step_seconds / self.pricer.cluster.device.ranks_per_processor

    def best(self, memory_limit: int, other_seconds: float) -> Candidate | None:
        """The fastest mix or member that fits, or None; slower than `other_seconds` need not be
        found.

        Fractions of weights are tried where all functions are rare, or where some are and mixes of
        unfractioned strategies leave memory unused.
        """
        best = self.fill_memory(memory_limit, other_seconds, self.choices[: len(self.group)])
        rare = [
            len(c.choice_numbers) > len(self.group)
            for signature in set(self.signatures)
            for c in signature
        ]
        if best is None or not any(rare):
            return best
        unused = memory_limit - best.peak_bytes >= CLOSE * _usable_bytes(self.pricer, memory_limit)
        if all(rare) or unused:
            with_fractions = self.fill_memory(memory_limit, other_seconds, self.choices)
            best = min(best, with_fractions or best, key=lambda c: c.step_seconds)
        return best

    def fill_memory(
        self, memory_limit: int, other_seconds: float, choices: Sequence[LayerChoice]
    ) -> Candidate | None:
        """The fastest mix or member under these choices.

        Layers share bytes, so every trial corrects the limit by what the last mix really needs. A
        trial saves at most the share of time that is left of the memory; while none fits, each
        backs off twice as far.
        """
        fitting = [c for c in self.group if c.peak_bytes <= memory_limit]
        best = min(fitting, key=lambda c: c.step_seconds, default=None)
        trial_limit, limit_range, last_counts, backoff = (
            memory_limit + self.double_counted_bytes(memory_limit),
            (0.0, inf),
            None,
            1,
        )
        for _ in range(TRIES):
            usable_bytes, host_bytes = (
                _usable_bytes(self.pricer, trial_limit),
                self.pricer.cluster.device.host_memory_bytes,
            )
            counts = best_counts(
                self.signatures, choices, self.micro_batches, (usable_bytes, host_bytes)
            )
            candidate = None if counts is None else self.mixed(counts)
            unused_bytes = 0 if candidate is None else memory_limit - candidate.peak_bytes
            if candidate is not None and unused_bytes >= 0:
                best = min(best or candidate, candidate, key=lambda c: c.step_seconds)
                slow = candidate.step_seconds * (1 - unused_bytes / usable_bytes) >= other_seconds
                if (
                    slow
                    or unused_bytes < CLOSE * usable_bytes
                    or (counts == last_counts and limit_range[1] == inf)
                ):
                    break
            trial_limit, limit_range, last_counts = (
                *_next_limit(trial_limit, limit_range, unused_bytes * backoff),
                counts,
            )
            backoff = 1 if limit_range[0] else 2 * backoff
            if trial_limit == inf:
                break
        return best

    def mixed(self, counts: Sequence[AssignmentCounts]) -> Candidate | None:
        """The priced candidate of these counts."""
        decisions = self.decisions(counts)
        bounds, micro_batches = self.fastest.bounds, self.micro_batches
        return self.pricer.mixed(decisions, bounds, micro_batches, self.chunks)

    def double_counted_bytes(self, memory_limit: int) -> float:
        """Bytes by which sums over classes exceed the peak of the largest uniform candidate that
        fits.
        """
        device = self.pricer.cluster.device
        choice_number, candidate = max(
            enumerate(self.group), key=lambda c: (c[1].peak_bytes <= memory_limit, c[1].peak_bytes)
        )
        counted_bytes = max(
            sum(c.call_count * c.costs[choice_number].lasting_bytes for c in signature)
            + max(c.costs[choice_number].passing_bytes for c in signature)
            for signature in set(self.signatures)
        )
        return counted_bytes * (1 + MARGIN) + device.runtime_overhead_bytes - candidate.peak_bytes

    def decisions(self, counts: Sequence[AssignmentCounts]) -> tuple[Decision, ...]:
        """Decisions from counts; layers of a class take choices in order, so equal ones are
        neighbours.
        """
        calls, chosen = self.pricer.calls, dict[int, int]()
        for stage, signature, stage_counts in zip(
            self.stages, self.signatures, counts, strict=True
        ):
            for c, class_counts in zip(signature, stage_counts, strict=True):
                members = (i for i in stage if calls[i].function == c.function)
                order = (
                    c.choice_numbers[index]
                    for index, count in enumerate(class_counts)
                    for _ in range(count)
                )
                chosen.update(zip(members, order, strict=True))
        most_common = Counter(chosen.values()).most_common(1)[0][0]
        decisions: list[Decision] = []
        for i in range(len(calls)):
            strategy, memory = self.choices[chosen.get(i, most_common)]
            if decisions and (decisions[-1].strategy, decisions[-1].memory) == (strategy, memory):
                decisions[-1] = Decision(decisions[-1].first, i + 1, strategy, memory)
            else:
                decisions.append(Decision(i, i + 1, strategy, memory))
        return tuple(decisions)


def _next_limit(
    trial_limit: float, limit_range: tuple[float, float], unused_bytes: float
) -> tuple[float, tuple[float, float]]:
    """The limit to try next, and the range that it lies in.

    Corrected by the bytes left unused, or the middle of the range where that leads outside.
    """
    low, high = (
        (trial_limit, limit_range[1]) if unused_bytes >= 0 else (limit_range[0], trial_limit)
    )
    corrected = trial_limit + unused_bytes
    return corrected if low < corrected < high else (low + high) / 2, (low, high)


class _FunctionCalls(NamedTuple):
    """Calls of one function in a stage, with their cost under every choice.

    `costs_by_choice`: choice number, bytes, batch axes, seconds per micro-batch and of
    synchronisation.
    """

    function: str
    calls: list[int]
    costs_by_choice: list[tuple[int, StageBytes, BatchAxes, float, float]]


def _usable_bytes(pricer: CandidatePricer, memory_limit: float) -> float:
    """Bytes of a memory limit for all terms but the runtime's overhead and the margin."""
    runtime = pricer.cluster.device.runtime_overhead_bytes
    return max((memory_limit - runtime) / (1 + MARGIN), 1.0)
