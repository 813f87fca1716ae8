"""What a search that is done says about its job after a change, from the prices that there are.

    memory limit    its candidates are compared again; a search where none fits
    global batch    its strategies on the batch, in micro-batches of the same sizes
    cluster         its strategies, as wide as the devices, under the shardings that were found
    tokens          its strategies on the model that is traced with them
    pin             its strategies with the pinned layers; of all layers that strategy alone

The answers are plans that can be had, not always the best: a search of the changed job may find better.
Each depends on the job and the change alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import inf

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.plan.memory_action import RECOMPUTE, MemoryAction
from ...ir.plan.strategy import ROLES, SEQUENCE_FLAG, Strategy
from ..pricing.candidate_pricer import CandidatePricer
from ..question.candidate import Assignment, Candidate, Decision, RunPoint
from ..question.pins import Pin, pin_per_call
from ..question.ranking import ranked
from .driver import SearchSpace

MOST_STRATEGIES = 16  # of a job that are tried on another batch or number of nodes
MOST_MOVED = 8  # that are tried on other devices, whose layers are priced anew
MOST_PINNED = 6  # candidates of a job that are tried with some layers pinned
MOST_FILLED = 2  # candidates whose layers recompute only as far as they must


def other_memory(space: SearchSpace, memory_bytes: int | None) -> SearchSpace:
    """The space under another memory limit, of which the candidates that are priced fit or are searched
    again, on the prices of layers that there are."""
    other = space.with_options(memory_bytes=memory_bytes)
    other.candidates = list(space.candidates)
    if other.best is None:
        other.run()
    return other


def other_batch(space: SearchSpace, global_batch: int) -> SearchSpace:
    """The strategies of a space, fastest first, on another global batch with micro-batches of the same
    sizes, whose layers are priced already."""
    if global_batch < 1:
        raise UsageError(f"a global batch of {global_batch} has no sample")
    old = space.pricer
    pricer = CandidatePricer(
        old.function_prices, global_batch, old.optimizer, old.stage_pricer.compressor
    )
    return _repriced(space, pricer, MOST_STRATEGIES)


def other_cluster(space: SearchSpace, cluster: Cluster) -> SearchSpace | None:
    """The strategies of a space on another cluster; None where none of them fits there."""
    if cluster.parts or space.cluster.parts:
        return None
    pricer = space.prices.moved(space.pricer, cluster)
    shares_prices = pricer.function_prices.tables is space.pricer.function_prices.tables
    other = _repriced(space, pricer, MOST_STRATEGIES if shares_prices else MOST_MOVED)
    return None if other.best is None else other


def other_model(space: SearchSpace, opened: SearchSpace) -> SearchSpace | None:
    """The strategies of a space on the model of another one, such as the same with longer samples; None
    where none of them fits there."""
    other = _repriced(space, opened.pricer, MOST_MOVED)
    return None if other.best is None else other


def searched_pin(space: SearchSpace, pin: Pin) -> SearchSpace:
    """The space with one more pin, searched on the prices of layers that there are."""
    other = space.with_options(pins=(*space.options.pins, pin))
    other.run()
    return other


def other_pin(space: SearchSpace, pin: Pin) -> SearchSpace | None:
    """A space with one more pin, of whose strategies some are tried; None where nothing fits so.

    Raises UsageError for a pin that matches no layer.
    """
    pricer = space.pricer
    pinned = pin_per_call(pricer.model, (pin,))
    other = space.with_options(pins=(*space.options.pins, pin))
    if not price_pinned(other):
        order = ranked(space.candidates, space.memory_limit_bytes)
        stages = (c for c in order if c.strategies[0].stages == pin.strategy.stages)
        chosen = islice(stages, MOST_PINNED)
        priced = (pricer.mixed(_with_pin(c, pinned), c.bounds) for c in chosen)
        other.candidates = [c for c in priced if c is not None]
    return None if other.best is None else other


def price_pinned(space: SearchSpace) -> bool:
    """Price a space of which every layer is pinned to one strategy: everything kept, recomputed, and
    recomputed in as few layers as fit. Whether it is such a space, and one of these fits."""
    pricer = space.pricer
    pins = pin_per_call(pricer.model, space.options.pins)
    strategies = {p and p.strategy for i, p in enumerate(pins) if i not in pricer.batch_only}
    if len(strategies) > 1 or None in strategies:
        return False
    space.price_pinned()
    limit = space.memory_limit_bytes
    fastest = inf if space.best is None else space.best.step_seconds
    tight = [c for c in space.candidates if c.step_seconds < fastest and c.peak_bytes > limit]
    tight.sort(key=lambda c: (c.step_seconds, c.micro_batches))
    filled = (_recomputed_in_few(space, c) for c in tight[:MOST_FILLED])
    space.candidates += [c for c in filled if c is not None]
    return space.best is not None


def _recomputed_in_few(space: SearchSpace, candidate: Candidate) -> Candidate | None:
    """A candidate with as few layers recomputed as its peak asks for: the first of every model chunk,
    by bisection of their share."""
    actions = space.options.memory_actions
    if candidate.memory_text != "keep" or "recompute" not in actions:
        return None
    best, low, high = None, 0, max(b - a for a, b in _chunks(candidate))
    while low < high:
        count = (low + high) // 2
        assignment = _recomputing(candidate, count)
        tried = space.pricer.mixed(assignment, candidate.bounds)
        if tried is not None and tried.peak_bytes <= space.memory_limit_bytes:
            best, high = tried, count
        else:
            low = count + 1
    return best


def _chunks(candidate: Candidate) -> list[tuple[int, int]]:
    """First and last call of every model chunk."""
    return list(zip(candidate.bounds, candidate.bounds[1:], strict=False))


def _recomputing(candidate: Candidate, count: int) -> Assignment:
    """A candidate's assignment with the first `count` calls of every model chunk recomputed."""
    (decision,) = candidate.decisions
    decided: list[Decision] = []
    for first, last in _chunks(candidate):
        end = min(first + count, last)
        if first < end:
            decided.append(replace(decision, first=first, last=end, memory=RECOMPUTE))
        if end < last:
            decided.append(replace(decision, first=end, last=last))
    return replace(candidate.assignment, decisions=tuple(decided))


def _with_pin(candidate: Candidate, pinned: Sequence[Pin | None]) -> Assignment:
    """A candidate's assignment with the pinned calls changed."""
    decided: list[Decision] = []
    for call, pin in enumerate(pinned):
        of_call = candidate.assignment.at(call)
        strategy = pin.strategy if pin else of_call.strategy
        memory = (pin and pin.memory) or of_call.memory
        last = decided[-1] if decided else None
        if last is not None and (last.strategy, last.memory) == (strategy, memory):
            decided[-1] = replace(last, last=call + 1)
        else:
            decided.append(Decision(call, call + 1, strategy, memory))
    return replace(candidate.assignment, decisions=tuple(decided))


def _repriced(space: SearchSpace, pricer: CandidatePricer, most: int) -> SearchSpace:
    """The `most` fastest strategies of a space, their batch axes as wide as the pricer's cluster."""
    devices, batch = pricer.cluster.devices, pricer.global_batch
    points = (
        point
        for candidate in ranked(space.candidates, space.memory_limit_bytes)
        for decision in candidate.decisions
        for strategy in _for_devices(decision.strategy, devices)
        for point in _points(candidate, strategy, decision.memory, batch)
    )
    limit = space.options.memory_limit(pricer.cluster.device.memory_bytes)
    other = SearchSpace(pricer, space.options, limit, space.prices)
    chosen = islice(_distinct(points), most)
    other.candidates = [c for c in map(pricer.candidate, chosen) if c is not None]
    return other


def _distinct(points: Iterable[RunPoint]) -> Iterator[RunPoint]:
    """Every point once, in order."""
    seen: set[RunPoint] = set()
    for point in points:
        if point not in seen:
            seen.add(point)
            yield point


def _for_devices(strategy: Strategy, devices: int) -> Iterator[Strategy]:
    """A strategy with its outermost batch axis as wide as the devices allow, if they do."""
    axes, place = list(strategy.axes), 0
    while place < len(axes) and not (ROLES[axes[place][0]].batch and axes[place][1] > 1):
        place += 1
    if strategy.devices == devices:
        yield strategy
    elif place < len(axes):
        role, size = axes[place]
        wider, rest = divmod(size * devices, strategy.devices)
        axes[place] = role, wider
        if not rest and wider:
            shown = (a for a in axes if a[1] > 1 or a == (SEQUENCE_FLAG, 1))
            yield replace(strategy, axes=tuple(shown))


def _points(
    candidate: Candidate, strategy: Strategy, memory: MemoryAction, global_batch: int
) -> list[RunPoint]:
    """The point of a strategy with the candidate's samples per device, as far as the batch has them."""
    assignment = candidate.assignment
    ranks = candidate.strategies[0].batch_degree() * assignment.micro_batches
    samples = min(assignment.global_batch // ranks, global_batch // strategy.batch_degree())
    count, rest = divmod(global_batch, strategy.batch_degree() * max(samples, 1))
    if rest or not count:
        return []
    return [
        RunPoint(
            strategy, global_batch, count, memory, assignment.model_chunks, assignment.schedule
        )
    ]
