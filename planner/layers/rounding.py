"""A first way of running a stage: all layers at their smallest, then the best exchanges that fit."""

from __future__ import annotations

from .problem import Counts, Stage


def rounded(stage: Stage, micro_batches: int) -> tuple[Counts, ...] | None:
    """Counts by layers and choice, or None where even the smallest do not fit.

    An exchange moves layers from one choice to a faster one; that with the most seconds of the step
    for its bytes goes first, for as many layers as there is room.
    """
    costs = [
        [(micro_batches - 1) * c.seconds + c.synchronised_seconds for c in layers.choices]
        for layers in stage.layers
    ]
    sizes = [[c.held_bytes for c in layers.choices] for layers in stage.layers]
    counts, room = [[0] * len(own) for own in costs], stage.free_bytes
    for layers, own, size, cost in zip(stage.layers, counts, sizes, costs, strict=True):
        held, _, least = min(zip(size, cost, range(len(own)), strict=True))
        own[least] = layers.count
        room -= layers.count * held
    if room < 0:
        return None
    while move := _best(counts, sizes, costs, room):
        run, old, new, number = move
        counts[run][old] -= number
        counts[run][new] += number
        room -= number * (sizes[run][new] - sizes[run][old])
    return tuple(map(tuple, counts))


def _best(
    counts: list[list[int]], sizes: list[list[int]], costs: list[list[float]], room: int
) -> tuple[int, int, int, int] | None:
    """The run, its old and new choice and how many layers, of the best exchange."""
    best, found = 0.0, None
    for run, own in enumerate(counts):
        for old, count in enumerate(own):
            for new in range(len(own)) if count else ():
                extra, gain = sizes[run][new] - sizes[run][old], costs[run][old] - costs[run][new]
                if gain > 0 and extra <= room and gain / max(extra, 1) > best:
                    number = count if extra <= 0 else min(count, room // extra)
                    best, found = gain / max(extra, 1), (run, old, new, number)
    return found
