"""Initial solution of a stage: all layers at their smallest, then the best exchanges that fit."""

from __future__ import annotations

from plait.benchmarks.rivals.layers.problem import ChoiceCounts, LayerStage


def rounded_counts(stage: LayerStage, micro_batches: int) -> tuple[ChoiceCounts, ...] | None:
    """Counts by layers and choice, or None where even the smallest choices do not fit.

    An exchange moves layers from one choice to a faster one; the one with the most seconds saved
    per byte goes first, for as many layers as memory allows.
    """
    costs = [
        [(micro_batches - 1) * c.seconds + c.synchronised_seconds for c in layers.choices]
        for layers in stage.layers
    ]
    sizes = [[c.peak_bytes for c in layers.choices] for layers in stage.layers]
    counts, free_bytes = [[0] * len(stage_counts) for stage_counts in costs], stage.free_bytes
    for layers, stage_counts, size, cost in zip(stage.layers, counts, sizes, costs, strict=True):
        smallest_bytes, _, smallest = min(zip(size, cost, range(len(stage_counts)), strict=True))
        stage_counts[smallest] = layers.count
        free_bytes -= layers.count * smallest_bytes
    if free_bytes < 0:
        return None
    while move := _best_exchange(counts, sizes, costs, free_bytes):
        run, old, new, number = move
        counts[run][old] -= number
        counts[run][new] += number
        free_bytes -= number * (sizes[run][new] - sizes[run][old])
    return tuple(map(tuple, counts))


def _best_exchange(
    counts: list[list[int]], sizes: list[list[int]], costs: list[list[float]], free_bytes: int
) -> tuple[int, int, int, int] | None:
    """The best exchange: run, old choice, new choice, number of layers; None where none helps."""
    best_rate, exchange = 0.0, None
    for run, stage_counts in enumerate(counts):
        for old, count in enumerate(stage_counts):
            for new in range(len(stage_counts)) if count else ():
                extra, gain = sizes[run][new] - sizes[run][old], costs[run][old] - costs[run][new]
                if gain > 0 and extra <= free_bytes and gain / max(extra, 1) > best_rate:
                    number = count if extra <= 0 else min(count, free_bytes // extra)
                    best_rate, exchange = gain / max(extra, 1), (run, old, new, number)
    return exchange
