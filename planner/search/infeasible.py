"""Nothing fits: what is short, by how much, and which changes were tried that do fit.

Every fix is a search of its own under one changed option, so what it promises is a plan that exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.errors import InfeasibleError, UsageError
from ...ir.plan.strategy import ROLES
from ...ir.text.printer import gib, seconds
from ..activations.ladder import ACTIONS
from ..candidate import Candidate
from .driver import Space

MOST_FACTOR = 64  # times the devices that there are
FIX_SECONDS = 20.0  # of search for one fix


class Fix(NamedTuple):
    """A change that was tried: what a user would write, and the fastest plan that fits under it."""

    change: str
    found: Candidate | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.change}: does not fit either"
        c = self.found
        return (
            f"{self.change}: {seconds(c.step_seconds)}/step, {gib(c.peak_bytes)} "
            f"({c.word}, {c.micro_batches} micro-batches, {c.memory})"
        )


def infeasible(space: Space) -> InfeasibleError:
    """The error for a space of which no candidate fits: the device and term that bind, the
    shortfall, and the fixes tried, cheapest first."""
    least = min(space.found, key=lambda c: c.peak_bytes)
    stages = space.evaluator.stages(least)
    stage = max(range(len(stages)), key=lambda s: stages[s].peak_bytes)
    terms = sorted(stages[stage].memory, key=lambda t: -t[1])
    short = stages[stage].peak_bytes - space.budget
    fixes = [] if space.clock.stopped else list(tried(space, least))
    lines = [
        f"infeasible: the smallest plan found ({least.word}, {least.micro_batches} micro-batches, "
        f"{least.memory}) needs {gib(least.peak_bytes)} on every device of stage {stage}, has "
        f"{gib(space.budget)}: {gib(short)} short",
        "  largest terms: " + ", ".join(f"{name} {gib(amount)}" for name, amount in terms[:4]),
        *(f"  tried {fix}" for fix in fixes),
        f"  or a budget of --memory {-(-least.peak_bytes >> 20)}MiB",
    ]
    return InfeasibleError(
        "\n".join(lines),
        {
            "status": "infeasible",
            "stage": stage,
            "term": terms[0][0],
            "shortfall": short,
            "budget": space.budget,
            "peak": least.peak_bytes,
            "word": least.word,
            "fixes": [
                {
                    "change": f.change,
                    "fits": f.found is not None,
                    "step_time_s": f.found.step_seconds if f.found else None,
                    "peak": f.found.peak_bytes if f.found else None,
                    "word": f.found.word if f.found else None,
                }
                for f in fixes
            ],
        },
    )


def tried(space: Space, least: Candidate) -> Iterator[Fix]:
    """Changes of one option each; those that cost nothing but time first, then more devices."""
    for change, other in freed(space):
        yield Fix(change, best(other))
    if least.micro_batches > 1 and space.options.micro_batches is not None:
        yield Fix("another number of micro-batches", best(space.again(micro_batches=None)))
    yield more_devices(space)


def freed(space: Space) -> Iterator[tuple[str, Space]]:
    """What the user's options forbid, allowed one at a time."""
    options = space.options
    if set(ACTIONS) - set(options.memory_actions):
        yield f"--memory-actions {','.join(ACTIONS)}", space.again(memory_actions=ACTIONS)
    zeros = [r for r in ROLES if ROLES[r].shards and r not in options.roles]
    if zeros and not options.pins:
        roles = (*options.roles, zeros[-1])
        yield f"--roles {','.join(roles)}", space.again(roles=roles)
    others = [r for r in ROLES if r not in options.roles]
    if others and others != zeros[-1:] and not options.pins:
        yield "all roles", space.again(roles=tuple(ROLES))
    if options.pins:
        yield "without --pin", space.again(pins=())


def more_devices(space: Space) -> Fix:
    """The fewest times the devices that are enough; none are for a budget below the runtime's own."""
    hopeless = space.cluster.device.runtime_overhead_bytes > space.budget
    factor = MOST_FACTOR if hopeless else 2
    while True:
        cluster = times(space.cluster, factor)
        found = None if hopeless else best(space.again(cluster, pins=()))
        if found is not None or factor >= MOST_FACTOR:
            return Fix(f"{cluster.devices} devices", found)
        factor *= 2


def times(cluster: Cluster, factor: int) -> Cluster:
    """The cluster with more groups at the outermost level."""
    first, *inner = cluster.levels
    return replace(cluster, levels=(replace(first, size=first.size * factor), *inner))


def best(space: Space) -> Candidate | None:
    """The fastest that fits."""
    space.clock.limit_seconds = FIX_SECONDS
    try:
        space.run()
    except UsageError:
        return None
    return min(space.fitting(), key=space.order, default=None)
