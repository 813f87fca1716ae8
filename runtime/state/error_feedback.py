"""What compressed collectives carry from step to step, as whole tensors of a checkpoint, and back.

A sum of gradients still owes the errors of all workers and of the servers. That total is kept:

    saved on n ranks    worker errors e0 … en-1, server errors s, whole and named as parameters
    loaded on n ranks   each its own, to the bit
    loaded on m ranks   (e0 + … + en-1) / m each, and s; where there are no servers, s / m more each
    sent exactly there  the same, added to the gradients of the first step

Replicas of weights are the same on all ranks and are cut like weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

from torch import Tensor

from ...ir.compression.kernel import State
from ...ir.compression.program import Subject
from ..comm.program_groups import MeshGroups
from ..compression.buckets import OWED, Carried
from ..compression.work import Ranks
from . import unsharded
from .parameters import LEVELS, Kept, Store

PUBLISHED = "published"  # rounded weights that are no collective's replica
Found = dict[str, dict[str, Tensor]]  # by parameter and place


class Place(NamedTuple):
    """Where a state is from: the axis it travels along, its name, and of which rank, if it matters."""

    role: str
    subject: Subject
    state: str
    rank: int | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in self if part is not None)


def parse(text: str) -> Place | None:
    """The place of `str(place)`; None for what is not one."""
    role, subject, state, rank = (*text.split("."), "", "", "")[:4]
    if subject not in ("gradients", "weights") or not (rank.isdecimal() or not rank):
        return None
    known: Subject = "gradients" if subject == "gradients" else "weights"
    return Place(role, known, state, int(rank) if rank else None)


def share(errors: Sequence[Tensor], size: int) -> Tensor:
    """What each of `size` ranks owes of these errors together."""
    return sum(errors[1:], errors[0]) / size


# saving


def states(store: Store, groups: MeshGroups) -> dict[str, Tensor]:
    """All states, by `place/parameter`; all ranks together."""
    mine = {(name, place): item for name, place, item in _mine(store, groups)}
    types = {key: piece.dtype for key, (piece, _) in mine.items()}
    found = {}
    for (name, place), dtype in unsharded.shared(types, groups).items():

        def make(name: str = name, place: str = place) -> Tensor:
            return store.gather(store.kept[name], *mine[name, place])

        found[f"{place}/{name}"] = unsharded.everywhere(store, groups, name, make, dtype=dtype)
    return found


def travelled(store: Store, groups: MeshGroups) -> dict[str, int]:
    """How often what travels along each role has done so, for noise that goes on where it was."""
    mine = {
        f"{role}.{bucket}": steps
        for (_, role), buckets in store.wires.made.items()
        for bucket, steps in buckets.steps().items()
    }
    return unsharded.shared(mine, groups)


def _mine(store: Store, groups: MeshGroups) -> Iterator[tuple[str, str, tuple[Tensor, int]]]:
    """Parameter, place, and this rank's piece after so many flat cuts."""
    replicas = set[str]()
    for (mesh, role), buckets in store.wires.made.items():
        for one in buckets.carried():
            everyone = groups.compressed[mesh, role].all
            rows = everyone.all_gather(one.value) if one.by_rank else one.value[None]
            for rank, row in enumerate(rows):
                place = Place(role, one.subject, one.state, rank if one.by_rank else None)
                yield one.tensor, str(place), (row, _cuts(role))
            replicas |= {one.tensor} if one.subject == "weights" else set()
    for kept in _rounded(store):
        if kept.name not in replicas:
            yield kept.name, PUBLISHED, (kept.flat, 1)


def _cuts(role: str) -> int:
    """Flat cuts that what a collective along a role makes whole still has."""
    return LEVELS.index(role) if role in LEVELS else len(LEVELS)


def _rounded(store: Store) -> Iterator[Kept]:
    """Parameters that are stepped on apart from what others see of them."""
    for kept in store.trained():
        if kept.total_ways > 1 and store.wires.rounds_weights(kept.held.mesh):
            yield kept


# loading


def restore(
    store: Store, saved: Mapping[str, Tensor], done: Mapping[str, int], steps: int
) -> set[str]:
    """Go on with the saved states after so many steps. Gives the parameters of this rank whose
    errors no collective here carries."""
    found: Found = {}
    for key, tensor in saved.items():
        place, _, name = key.partition("/")
        found.setdefault(name, {})[place] = tensor
    owing = {n for n, places in found.items() if n in store.kept and any(_errors(places))}
    for kept in _rounded(store):
        if PUBLISHED in found.get(kept.name, {}):
            kept.flat.copy_(store.cut(kept, found[kept.name][PUBLISHED], 1))
    for (mesh, role), buckets in sorted(store.wires.made.items()):  # zero2 after zero1
        carried = [
            one
            for kept in store.trained()
            if kept.held.mesh == mesh and kept.name in found
            for one in _carried(store, kept, role, found[kept.name])
        ]
        own = {key.partition(".")[2]: n for key, n in done.items() if key.startswith(f"{role}.")}
        buckets.carry(carried, own, steps)
        owing -= {one.tensor for one in carried if one.subject == "gradients"}
    return owing


def _errors(places: Mapping[str, Tensor]) -> Iterator[Place]:
    for text in places:
        place = parse(text)
        if place is not None and place.subject == "gradients":
            yield place


def _carried(
    store: Store, kept: Kept, role: str, places: Mapping[str, Tensor]
) -> Iterator[Carried]:
    """This rank's pieces of one parameter's states for the collectives along a role."""
    buckets, cuts = store.wires.made[kept.held.mesh, role], _cuts(role)
    local = kept.cut.kept // prod(kept.ways[1:cuts]) if cuts else kept.cut.length
    large = local * kept.flat.element_size() >= buckets.small_bytes
    for state in buckets.states("weights") if large else ():
        value = places.get(str(Place(role, "weights", state.name)))
        if value is not None:
            flat = store.cut(kept, value, cuts)
            yield Carried("weights", state.name, kept.name, False, flat)
            kept.flat.copy_(store.cut(kept, value, 1))
    if "+".join(kept.held.sums) == role and any(_errors(places)):
        states = buckets.states("gradients") if large else ()
        for name, by_rank, value in _owed(states, buckets.levels.all, role, places):
            yield Carried("gradients", name, kept.name, by_rank, store.cut(kept, value))


def _owed(
    states: Sequence[State], ranks: Ranks, role: str, places: Mapping[str, Tensor]
) -> Iterator[tuple[str, bool, Tensor]]:
    """Errors for the states along a role: names, whether by rank, and whole values."""
    saved = {place: places[str(place)] for place in sorted(_errors(places), key=str)}
    servers = [value for place, value in saved.items() if place.rank is None]
    worker = next((s.name for s in states if s.resharded == "reset"), OWED)
    server = next((s.name for s in states if s.resharded == "split"), None)
    if server is not None and servers:
        yield server, False, share(servers, 1)
    own = [Place(role, "gradients", worker, rank) for rank in range(ranks.size)]
    owing = [v for place, v in saved.items() if place.rank is not None or server is None]
    if {place for place in saved if place.rank is not None or server is None} == set(own):
        yield worker, True, saved[own[ranks.index]]
    elif owing:
        yield worker, True, share(owing, ranks.size)
