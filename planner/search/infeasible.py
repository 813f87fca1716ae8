"""Explains why nothing fits: the shortage, and changes of options that make a plan fit.

Every hint is a search of its own under one changed option, so the plan it promises exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import Any, NamedTuple

from msgspec.structs import replace

from ...ir.errors import InfeasibleError, MismatchError, UsageError
from ...ir.lowering.rescale import rescale
from ...ir.plan.strategy import ROLES, SEARCHED_ROLES
from ...ir.text.units import gib, micro_batches, seconds
from ..question.candidate import Candidate
from ..question.options import MEMORY_ACTIONS
from .driver import SearchSpace
from .first_plan import first_fitting, least_bytes, never_fits

MOST_FACTOR = 64  # times the devices that there are
HINT_SECONDS = 20.0  # of search for one fix


class Hint(NamedTuple):
    """A change that was tried, as a user would write it, and the fastest candidate that fits."""

    change: str
    candidate: Candidate | None

    def row(self) -> dict[str, Any]:
        """The change and its figures."""
        if self.candidate is None:
            return {"change": self.change, "fits": False, "step_time_s": None, "peak": None}
        return {**candidate_row(self.candidate), "change": self.change, "fits": True}

    def __str__(self) -> str:
        if self.candidate is None:
            return f"{self.change}: does not fit either"
        c = self.candidate
        return (
            f"{self.change}: {seconds(c.step_seconds)}/step, {gib(c.peak_bytes)} "
            f"({c.strategy_text}, {micro_batches(c.micro_batches)}, {c.memory_text})"
        )


def candidate_row(candidate: Candidate) -> dict[str, Any]:
    """A candidate in a row of figures."""
    return {
        "word": candidate.strategy_text,
        "micro_batches": candidate.micro_batches,
        "memory": candidate.memory_text,
        "step_time_s": candidate.step_seconds,
        "samples_per_s": candidate.assignment.global_batch / candidate.step_seconds,
        "peak": candidate.peak_bytes,
    }


def more_memory(least: Candidate) -> Hint:
    """The memory limit under which the smallest candidate fits."""
    return Hint(f"--memory {-(-least.peak_bytes >> 20)}MiB", least)


def percent_more(least: Candidate, limit_bytes: int) -> str:
    """`+2.5 %`: what the smallest candidate needs beyond a limit."""
    return f"+{100 * (least.peak_bytes / limit_bytes - 1):.1f} %"


def infeasible(space: SearchSpace) -> InfeasibleError:
    """The error for a space without a fitting candidate.

    It names the device and memory term that bind, the shortfall and the hints, cheapest first.
    """
    least = min(space.candidates, key=lambda c: c.peak_bytes)
    stages = space.pricer.stages(least)
    stage = max(range(len(stages)), key=lambda s: stages[s].peak_bytes)
    terms = sorted(stages[stage].memory_terms, key=lambda t: -t[1])
    shortfall = stages[stage].peak_bytes - space.memory_limit_bytes
    enough, more = more_memory(least), percent_more(least, space.memory_limit_bytes)
    hints = [] if space.deadline.stopped else list(tried_hints(space, least))
    lines = [
        f"infeasible: the smallest plan found ({least.strategy_text}, "
        f"{micro_batches(least.micro_batches)}, {least.memory_text}) needs "
        f"{gib(least.peak_bytes)} on every device of stage {stage}, has "
        f"{gib(space.memory_limit_bytes)}: {gib(shortfall)} short",
        *proof(space),
        "  largest terms: " + ", ".join(f"{name} {gib(amount)}" for name, amount in terms[:4]),
        *(f"  tried {hint}" for hint in hints),
        f"  or a budget of {enough.change} ({more})",
    ]
    return InfeasibleError(
        "\n".join(lines),
        {
            "status": "infeasible",
            "stage": stage,
            "term": terms[0][0],
            "shortfall": shortfall,
            "budget": space.memory_limit_bytes,
            "peak": least.peak_bytes,
            "word": least.strategy_text,
            "fixes": [hint.row() for hint in (*hints, enough)],
        },
    )


def proof(space: SearchSpace) -> Iterator[str]:
    """Why no plan of a space fits, where its states alone say so."""
    if not never_fits(space):
        return
    least, runtime = least_bytes(space), space.cluster.device.runtime_overhead_bytes
    yield (
        f"  no plan fits: a device needs {gib(least.total_bytes + runtime)} at least (parameters "
        f"{gib(least.parameters)}, gradients {gib(least.gradients)}, optimizer "
        f"{gib(least.optimizer)}, runtime {gib(runtime)})"
    )


def impossible(space: SearchSpace, message: str) -> UsageError:
    """The error for a space in which nothing can be priced, with the first change that gives a plan."""
    for change, changed in possible_changes(space):
        candidate = fastest_fitting(changed)
        if candidate is not None:
            hint = Hint(change, candidate)
            return UsageError(f"{message}; tried {hint}", {"fixes": [hint.row()]})
    return UsageError(message)


def possible_changes(space: SearchSpace) -> Iterator[tuple[str, SearchSpace]]:
    """Spaces with one thing changed that may stand in the way of every strategy asked for."""
    options = space.options
    if options.micro_batches is not None:
        yield "another number of micro-batches", space.with_options(micro_batches=None)
    if options.engine != "plait":
        yield "--engine plait", space.with_options(engine="plait")
    batch = divisible_batch(space)
    if batch != space.pricer.model.batch and (other := with_batch(space, batch)) is not None:
        yield f"--global-batch {batch}", other
    if options.pins:
        yield "without --pin", space.with_options(pins=())


def divisible_batch(space: SearchSpace) -> int:
    """The next batch that all pins and micro-batches divide."""
    degrees = [pin.strategy.batch_degree() for pin in space.options.pins]
    parts = lcm(*degrees) * (space.options.micro_batches or 1)
    return -(-space.pricer.model.batch // parts) * parts


def smaller_batches(space: SearchSpace) -> Iterator[Hint]:
    """Halves of a batch that is not cut into more micro-batches, until one fits."""
    batch = space.pricer.model.batch
    while batch % 2 == 0 and batch // 2 >= space.cluster.devices:
        batch //= 2
        other = with_batch(space, batch)
        candidate = fastest_fitting(other) if other is not None else None
        if candidate is not None:
            yield Hint(f"--global-batch {batch}", candidate)
            return


def with_batch(space: SearchSpace, batch: int) -> SearchSpace | None:
    """The space of a job with another batch; None where the trace does not tell where the batch lies."""
    try:
        model = rescale(space.pricer.model, batch)
    except MismatchError:
        return None
    return SearchSpace.create(model, space.cluster, space.options, space.prices)


def tried_hints(space: SearchSpace, smallest: Candidate) -> Iterator[Hint]:
    """Changes of one option each: first those that cost only time, then more devices."""
    for change, changed in relaxed_options(space):
        yield Hint(change, fastest_fitting(changed))
    if smallest.micro_batches > 1 and space.options.micro_batches is not None:
        yield Hint(
            "another number of micro-batches",
            fastest_fitting(space.with_options(micro_batches=None)),
        )
    if not space.pricer.call_prices.micro_batchable:
        yield from smaller_batches(space)
    yield more_devices(space)


def relaxed_options(space: SearchSpace) -> Iterator[tuple[str, SearchSpace]]:
    """Spaces with one restriction of the user's options lifted at a time."""
    options = space.options
    if set(MEMORY_ACTIONS) - set(options.memory_actions):
        yield (
            f"--memory-actions {','.join(MEMORY_ACTIONS)}",
            space.with_options(memory_actions=MEMORY_ACTIONS),
        )
    if options.optimizer_on == "device" and options.may_step_on_host:
        yield "--optimizer-on host", space.with_options(optimizer_on="host")
    sharded_roles = [r for r in ROLES if ROLES[r].shards and r not in options.roles]
    if sharded_roles and not options.pins:
        roles = (*options.roles, sharded_roles[-1])
        yield f"--roles {','.join(roles)}", space.with_options(roles=roles)
    others = [r for r in SEARCHED_ROLES if r not in options.roles]
    if others and others != sharded_roles[-1:] and not options.pins:
        yield "all roles", space.with_options(roles=SEARCHED_ROLES)
    if options.pins:
        yield "without --pin", space.with_options(pins=())


def more_devices(space: SearchSpace) -> Hint:
    """The smallest power-of-two multiple of the devices on which a most sharded plan fits, else the
    largest, searched.

    None fits where the runtime's own memory leaves nothing below the limit.
    """
    if space.cluster.device.runtime_overhead_bytes >= space.memory_limit_bytes:
        return Hint(f"{MOST_FACTOR * space.cluster.devices} devices", None)
    factor, larger = 2, multiplied(space, 2)
    while (
        first := None if never_fits(larger) else first_fitting(larger)
    ) is None and factor < MOST_FACTOR:
        factor *= 2
        larger = multiplied(space, factor)
    if first is None or not never_fits(space):  # what is proved needs no search for the fastest
        first = fastest_fitting(larger) or first
    return Hint(f"{larger.cluster.devices} devices", first)


def multiplied(space: SearchSpace, factor: int) -> SearchSpace:
    """The space of `factor` times the devices: of the groups at the outermost level, without pins."""
    first, *inner = space.cluster.levels
    levels = (replace(first, size=first.size * factor), *inner)
    return space.with_options(replace(space.cluster, levels=levels), pins=())


def fastest_fitting(space: SearchSpace) -> Candidate | None:
    """The fastest candidate that fits, searched for at most `HINT_SECONDS` where some plan may fit."""
    if never_fits(space):
        return None
    space.deadline.limit_seconds = HINT_SECONDS
    try:
        space.run()
    except UsageError:
        return None
    return space.best
