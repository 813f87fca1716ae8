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
from ...cost_model.memory.host_states import host_bytes
from ...cost_model.memory.in_flight import InFlight
from ...cost_model.memory.peak import (
    MARGIN,
    PeakBytes,
    after_forward,
    between_calls,
    part_amounts,
    part_peak,
    part_terms,
)
from ...cost_model.pipeline.closed_form import fill_drain_seconds
from ...ir.plan.flat_shard import FULL, Fraction
from ...ir.plan.memory_action import KEEP, MemoryAction
from ...ir.plan.plan import Span
from ...ir.plan.schedules.registry import is_mirrored, splits_backward
from ...ir.plan.workload import StageBytes
from ..pricing.candidate_pricer import CandidatePricer
from ..pricing.function_prices import CallPrice
from ..pricing.stage_cost import StageTimes, end_chunk_shares, stage_model_chunks
from ..question.candidate import Candidate, Decision, RunPoint
from ..question.options import FRACTIONS
from ..solvers.pareto import pareto
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


def groups(
    candidates: Sequence[Candidate], limit_seconds: float = inf, by_strategy: bool = False
) -> list[list[Candidate]]:
    """Uniform candidates grouped by how they split the devices, or by their whole strategy; the group
    with the fastest member first, none whose mixes all take `limit_seconds` or more. Members that a
    faster one undercuts in memory are left out, and so are those of schedules that have every layer on
    two stages, which must agree on it.
    """
    by_split: dict[object, list[Candidate]] = {}
    for candidate in candidates:
        if len(candidate.decisions) > 1 or is_mirrored(candidate.schedule):
            continue
        split = candidate.assignment.first_point.replica._replace(memory=KEEP)
        key = (split, candidate.strategies[0] if by_strategy else None)
        by_split.setdefault(key, []).append(candidate)
    useful = [_undominated(g) for g in by_split.values() if fastest(g) < limit_seconds]
    return sorted((g for g in useful if len(g) > 1), key=fastest)


def _undominated(group: Group) -> list[Candidate]:
    """Candidates that no faster one undercuts in memory.

    Offloading and chunking help some functions and not others, so each is compared with its like.
    """
    by_action: dict[MemoryAction | None, list[Candidate]] = {}
    ranked = sorted(group, key=lambda c: (c.step_seconds, c.peak_bytes, c.strategy_text))
    for candidate in ranked:
        memory = candidate.decisions[0].memory
        compared = memory if memory.on_host or memory.chunked else None
        by_action.setdefault(compared, []).append(candidate)
    fronts = (
        pareto(comparable, lambda c: (c.step_seconds, c.peak_bytes))
        for comparable in by_action.values()
    )
    on_front = {id(candidate) for front in fronts for candidate in front}
    return [candidate for candidate in ranked if id(candidate) in on_front]


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
        self.choices = [LayerChoice(d.strategy, d.memory) for c in group for d in c.decisions]
        self.choices += [
            LayerChoice(replace(strategy, fraction=fraction), memory)
            for strategy, memory in self.choices
            for fraction in (
                fractions if strategy.supports_fraction and strategy.fraction == FULL else ()
            )
        ]
        self.fastest = min(group, key=lambda c: (c.step_seconds, c.strategy_text, c.memory_text))
        assignment = self.fastest.assignment
        self.micro_batches = assignment.micro_batches
        self.schedule = assignment.schedule
        self.points = [
            replace(assignment.first_point, strategy=strategy, memory=memory)
            for strategy, memory in self.choices
        ]
        self.prices_by_choice = [self.uniform_prices(point) for point in self.points]
        self.spans_by_stage = stage_model_chunks(
            self.fastest.bounds, assignment.model_chunks, self.schedule
        )
        self.stages = [
            tuple(pricer.aggregator.calls_per_micro_batch(spans)) for spans in self.spans_by_stage
        ]
        fastest_prices = self.prices_by_choice[group.index(self.fastest)]
        self.end_shares = end_chunk_shares(
            pricer.call_prices.seconds(fastest_prices), self.spans_by_stage
        )
        self.signatures = self.stage_signatures(fastest_prices)

    def uniform_prices(self, point: RunPoint) -> list[CallPrice]:
        """Prices of all calls under one choice."""
        prices = self.pricer.call_prices.uniform(point.replica)
        assert prices is not None
        return prices

    def stage_signatures(self, fastest_prices: list[CallPrice]) -> list[StageSignature]:
        """Classes of interchangeable calls of every stage; equal stages share them."""
        pricer = self.pricer
        calls_by_key: dict[object, list[_FunctionCalls]] = {}
        signature_by_key: dict[object, StageSignature] = {}
        signatures: list[StageSignature] = []
        for number, spans in enumerate(self.spans_by_stage):
            stage_key = tuple(
                (tuple(pricer.call_classes[first:last]), last == len(pricer.calls))
                for first, last in spans
            )
            saved = pricer.aggregator.saved_bytes(fastest_prices, spans)
            in_flight = pricer.stage_pricer.in_flight(
                len(self.spans_by_stage), number, self.micro_batches, saved, self.schedule
            )
            if stage_key not in calls_by_key:
                calls_by_key[stage_key] = list(self.function_calls(spans))
            if (stage_key, in_flight) not in signature_by_key:
                signature_by_key[stage_key, in_flight] = tuple(
                    self.call_class(calls, in_flight) for calls in calls_by_key[stage_key]
                )
            signatures.append(signature_by_key[stage_key, in_flight])
        return signatures

    def function_calls(self, spans: tuple[Span, ...]) -> Iterator[_FunctionCalls]:
        """The calls of a stage by function, added up and timed under every choice."""
        pricer, stage_calls = self.pricer, self.pricer.aggregator.calls_per_micro_batch(spans)
        for name in dict.fromkeys(pricer.calls[i].function for i in stage_calls):
            calls = [i for i in stage_calls if pricer.calls[i].function == name]
            costs: list[_ChoiceCost] = []
            for number, (point, prices) in enumerate(
                zip(self.points, self.prices_by_choice, strict=True)
            ):
                if point.strategy.fraction != FULL and len(calls) > RARE:
                    continue
                cost = pricer.aggregator.cost(prices, spans, point.replica, calls)
                axes = pricer.stage_pricer.batch_axes(point.strategy)
                times = pricer.stage_pricer.times(cost, axes, self.micro_batches)
                costs.append(_ChoiceCost(number, cost.bytes, axes, times))
            yield _FunctionCalls(name, calls, costs)

    def call_class(self, function_calls: _FunctionCalls, in_flight: InFlight) -> CallClass:
        """A class of interchangeable calls, with the cost of one call under every choice."""
        calls = function_calls.calls
        costs = (self.call_cost(c, len(calls), in_flight) for c in function_calls.costs)
        return CallClass(
            function_calls.function,
            len(calls),
            tuple(costs),
            any(self.pricer.aggregator.shares_parameters[i] for i in calls),
            tuple(c.choice_number for c in function_calls.costs),
        )

    def call_cost(self, choice: _ChoiceCost, calls: int, pipeline_state: InFlight) -> CallCost:
        """Cost of one of `calls` equal calls under one choice."""
        pricer, stage_bytes, axes = self.pricer, choice.bytes, choice.axes
        execution = pricer.function_prices.execution

        def bytes_at(point: PeakBytes) -> int:
            amounts = part_amounts(stage_bytes, axes, pricer.optimizer, execution, point)
            return sum(part_terms(amounts, axes).values())

        idle = between_calls(stage_bytes, axes, execution, pipeline_state)
        peak = part_peak(stage_bytes, axes, execution, pipeline_state, pricer.cluster.device)
        least = after_forward(stage_bytes, axes, execution, pipeline_state)
        return CallCost(
            choice.times.busy_seconds / calls,
            choice.times.per_step_seconds / calls,
            bytes_at(least) / calls,
            bytes_at(idle) / calls,
            host_bytes(((stage_bytes, axes),), pricer.optimizer, execution, pipeline_state) / calls,
            max(sum(peak) - sum(idle), 0),
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
        other_stages = (
            [0.0] * len(micro_batch_seconds)
            if splits_backward(self.schedule)
            else fill_drain_seconds(micro_batch_seconds, self.end_shares)
        )
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
        assignment = replace(self.fastest.assignment, decisions=self.decisions(counts))
        return self.pricer.mixed(assignment, self.fastest.bounds)

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


class _ChoiceCost(NamedTuple):
    """Cost of the calls of one function in a stage under one choice."""

    choice_number: int
    bytes: StageBytes
    axes: BatchAxes
    times: StageTimes


class _FunctionCalls(NamedTuple):
    """Calls of one function in a stage, with their cost under every choice."""

    function: str
    calls: list[int]
    costs: list[_ChoiceCost]


def _usable_bytes(pricer: CandidatePricer, memory_limit: float) -> float:
    """Bytes of a memory limit for all terms but the runtime's overhead and the margin."""
    runtime = pricer.cluster.device.runtime_overhead_bytes
    return max((memory_limit - runtime) / (1 + MARGIN), 1.0)
