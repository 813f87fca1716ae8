"""The first plan of a search: the smallest that is found at once, before time goes into faster ones."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

from ...ir.plan.strategy import ROLES, Strategy
from ..activations.ladder import memory_saving_candidates
from ..question.candidate import Candidate
from ..question.deadline import Deadline
from ..question.strategy_space import divisors
from .driver import SearchSpace

MOST_TRIED = 3  # strategies


def first_fitting(space: SearchSpace) -> Candidate | None:
    """The fastest of the smallest candidates that fit: state sharded over as many devices as the batch
    allows, micro-batches of one sample, all memory actions. None where none of them fits, and for
    pinned strategies, which leave nothing to choose. The time limit does not end it.
    """
    if space.options.pins:
        return None
    for tried, strategy in enumerate(most_sharded(space)):
        candidates = _smallest(space, strategy)
        fitting = [c for c in candidates if c.peak_bytes <= space.memory_limit_bytes]
        if fitting:
            return min(fitting, key=space.sort_key)
        if tried + 1 == MOST_TRIED:
            break
    return None


def most_sharded(space: SearchSpace) -> Iterator[Strategy]:
    """Strategies that shard most of the state over the batch axis, with stages or operators over what is
    left of the devices; the largest batch axis comes first."""
    batch_roles = [r for r in space.roles if ROLES[r].batch and not ROLES[r].experts]
    if not batch_roles:
        return
    role = max(batch_roles, key=lambda r: len(ROLES[r].shards))
    devices = space.cluster.devices
    for degree in reversed(divisors(gcd(devices, space.pricer.global_batch))):
        rest = devices // degree
        inner = [r for r in space.roles if ROLES[r].stages and rest <= space.stages]
        inner += [r for r in space.roles if ROLES[r].operators and not ROLES[r].sequence]
        batch = ((role, degree),) if degree > 1 else ()
        if rest == 1:
            yield Strategy(batch)
        for other in inner if rest > 1 else ():
            axes = (other, rest)
            yield Strategy((axes, *batch) if ROLES[other].stages else (*batch, axes))


def _smallest(space: SearchSpace, strategy: Strategy) -> list[Candidate]:
    """Candidates of a strategy in micro-batches of one sample and at once, under all memory actions."""
    samples = space.pricer.global_batch // strategy.batch_degree()
    fixed = space.options.micro_batches
    counts = [samples, 1] if fixed is None else [fixed]
    candidates = space.uniform_candidates(strategy, list(dict.fromkeys(counts)))
    return candidates + memory_saving_candidates(
        candidates,
        space.memory_limit_bytes,
        space.pricer.candidate,
        space.options.engine_actions,
        Deadline(),
        space.engine.allows_action,
    )
