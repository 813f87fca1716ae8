"""The first plan of a search: the smallest that is found at once, before time goes into faster ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import gcd, prod

from ...cost_model.memory.least_states import LeastStates, least_states, most_shards
from ...ir.plan.memory_action import BASIC_ACTIONS
from ...ir.plan.strategy import ROLES, Strategy
from ..activations.ladder import action_ladders, base_actions, climb
from ..question.candidate import Candidate
from ..question.deadline import Deadline
from ..question.ranking import fitting
from ..question.strategy_space import (
    NEAR_DEVICES,
    ModelAxes,
    axis_families,
    divisors,
    inner_batch_degree,
    with_experts,
)
from .driver import SearchSpace

MOST_TRIED = 6  # strategies


def first_fitting(space: SearchSpace) -> Candidate | None:
    """The first of the smallest candidates that fits: state sharded over all devices, micro-batches of
    one sample, the memory actions that save most. None where none of them fits, and for pinned
    strategies, which leave nothing to choose. The time limit does not end it.
    """
    for base in smallest_candidates(space):
        first = next(fitting(base, space.memory_limit_bytes), None) or _saving(space, base)
        if first is not None:
            return first
    return None


def smallest_candidates(space: SearchSpace) -> Iterator[list[Candidate]]:
    """Candidates under the base actions whose states are sharded most, by strategy and micro-batches;
    none for pinned strategies."""
    if space.options.pins:
        return
    for strategy in islice(most_sharded(space), MOST_TRIED):
        for count in _micro_batch_counts(space, strategy):
            yield space.uniform_candidates(strategy, [count])


def least_bytes(space: SearchSpace) -> LeastStates:
    """States of the fullest device that no candidate of the space is below."""
    pricer = space.pricer
    roles = tuple(ROLES) if space.options.pins else space.roles
    shards = most_shards(roles, space.cluster.devices, space.stages)
    return least_states(pricer.model, pricer.optimizer, pricer.function_prices.execution, shards)


def never_fits(space: SearchSpace) -> bool:
    """Whether the states alone, beside the runtime's own memory, are beyond the limit in any plan."""
    runtime = space.cluster.device.runtime_overhead_bytes
    return least_bytes(space).total_bytes + runtime > space.memory_limit_bytes


def most_sharded(space: SearchSpace) -> Iterator[Strategy]:
    """Strategies that shard most of the state over all devices, those first whose layers are priced
    soonest: over the batch as far as it divides and over stages, then with experts apart, with operators
    or tokens split, and with both, on few neighbours."""
    roles = [r for r in space.roles if ROLES[r].batch and not ROLES[r].experts]
    role = max(roles, key=lambda r: len(ROLES[r].shards), default=None)
    staging = [r for r in space.roles if ROLES[r].stages]
    for model_axes in _inner_axes(space):
        rest = space.cluster.devices // prod(size for _, size in model_axes)
        samples, remainder = divmod(space.pricer.global_batch, inner_batch_degree(model_axes))
        degrees = divisors(gcd(rest, samples)) if role and not remainder else [1]
        most_stages = space.stages if staging else 1
        degrees = [d for d in degrees if rest // d <= most_stages]
        sharded = role is not None and "parameter" in ROLES[role].shards
        for degree in degrees[-1:] if sharded else dict.fromkeys((*degrees[:1], *degrees[-1:])):
            axes = (*((r, rest // degree) for r in staging), (role or "", degree))
            strategy = Strategy((*(a for a in axes if a[1] > 1), *model_axes))
            if space.refusal(strategy) is None:
                yield strategy


def _inner_axes(space: SearchSpace) -> Iterator[ModelAxes]:
    """The largest axes inside a replica of every family, without and with an axis of experts."""
    families = [_largest(family) for family in axis_families(space.cluster, space.roles)]
    # split operators with tokens split between them come first
    split = sorted(filter(None, families), key=len, reverse=True)
    with_apart = [_largest(with_experts(space.cluster, space.roles, axes)) for axes in ((), *split)]
    yield ()
    yield from filter(None, (*with_apart[:1], *split, *with_apart[1:]))


def _largest(family: list[ModelAxes]) -> ModelAxes:
    """The largest axes of a family whose last one grows, on `NEAR_DEVICES` at most; none where there
    are none."""
    near = [axes for axes in family if max((n for _, n in axes), default=1) <= NEAR_DEVICES]
    return near[-1] if near else ()


def _micro_batch_counts(space: SearchSpace, strategy: Strategy) -> list[int]:
    """Micro-batches of one sample, and all samples at once for what runs in no micro-batches."""
    samples, fixed = (
        space.pricer.global_batch // strategy.batch_degree(),
        space.options.micro_batches,
    )
    if fixed is not None:
        return [fixed]
    return [samples if space.pricer.call_prices.micro_batchable else 1]


def _saving(space: SearchSpace, base: list[Candidate]) -> Candidate | None:
    """Of candidates under the base actions that do not fit, the first that does under another action;
    those that save most are tried first."""
    allowed, limit = space.options.engine_actions, space.memory_limit_bytes
    between = set(map(str, BASIC_ACTIONS)) <= set(allowed)  # keep and recompute were tried
    ladders = action_ladders(allowed)[int(between) :]
    first_action = str(base_actions(allowed)[0])
    for candidate in (c for c in base if c.memory_text == first_action):
        for ladder in ladders:
            actions = [m for m in reversed(ladder) if space.engine.allows_action(m)]
            for priced in climb(candidate, actions, limit, space.pricer.candidate, Deadline()):
                if priced.peak_bytes <= limit:
                    return priced
    return None
