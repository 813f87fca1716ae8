"""Operators that keep their weights whole or in shards, each by itself (OSDP, Jiang et al. 2023).

    dp      whole on every rank        2 (N - 1) (alpha + S / N beta): gradients are all-reduced
    zero3   a shard on every rank      3 (N - 1) (alpha + S / N beta): gathered twice, reduce-scattered
    k / g   cut in g, k of them zero3  k gathers of S / g, and an all-reduce of the rest

As problems of the layered search: bytes of states add up over operators, but of gathered weights only
the largest piece is there at a time. So there is a problem for every batch and every size of piece
that may be gathered; the best of all is the optimum. Seconds are per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import msgspec

from plait.planner.layers.exact_search import Best, fastest
from plait.planner.layers.objective import OneForwardOneBackward
from plait.planner.layers.problem import Choice, Layers, Problem, Stage


class Operator(msgspec.Struct, frozen=True):
    """Equal operators: bytes of one's weight, and into how many pieces it may be cut."""

    name: str
    count: int
    weight_bytes: int
    pieces: tuple[int, ...] = (1,)


class Setting(msgspec.Struct, frozen=True):
    """Ranks and what a message and a byte of it take; bytes of all states per byte of weight; a sample's
    activations and compute; and the budget of a device."""

    ranks: int
    message_seconds: float
    byte_seconds: float
    states: float
    sample_bytes: int
    sample_seconds: float
    budget_bytes: int


class Ways(msgspec.Struct, frozen=True):
    """One way of keeping one operator: of `pieces`, `sharded` are zero3."""

    pieces: int
    sharded: int

    def __str__(self) -> str:
        return f"zero3:{self.sharded}/{self.pieces}" if self.sharded else "dp"

    def gathered_bytes(self, operator: Operator) -> int:
        """What is there beside the states while it runs."""
        return -(-operator.weight_bytes // self.pieces) if self.sharded else 0

    def held_bytes(self, operator: Operator, setting: Setting) -> int:
        share = self.sharded / self.pieces
        kept = 1 - share + share / setting.ranks
        return round(setting.states * operator.weight_bytes * kept)

    def seconds(self, operator: Operator, setting: Setting) -> float:
        """Of communication in a step."""
        whole = self.pieces - self.sharded
        each = operator.weight_bytes / self.pieces / setting.ranks * setting.byte_seconds
        reduced = 2 * (setting.message_seconds + whole * each) if whole else 0.0
        gathered = 3 * self.sharded * (setting.message_seconds + each)
        return (setting.ranks - 1) * (reduced + gathered)


DP, ZERO3 = Ways(1, 0), Ways(1, 1)


class Kept(msgspec.Struct, frozen=True):
    """The best of all: samples of a rank in a step, seconds of one sample, and how many of every
    operator are kept which way; `gap` is how much faster it could be."""

    samples: int
    sample_seconds: float
    counts: tuple[dict[str, int], ...]
    gap: float


def every(operator: Operator) -> Iterator[Ways]:
    """Every way of keeping an operator."""
    yield DP
    for pieces in operator.pieces:
        yield from (Ways(pieces, sharded) for sharded in range(1, pieces + 1))


def sharded(operator: Operator) -> Iterator[Ways]:
    """All of every weight in shards, as FSDP keeps it."""
    yield ZERO3


def problem(
    operators: Sequence[Operator],
    setting: Setting,
    samples: int,
    gathered_bytes: int,
    ways: Callable[[Operator], Iterable[Ways]] = every,
) -> Problem:
    """All operators as one stage, with so many samples and pieces of at most so many bytes."""

    def choice(operator: Operator, way: Ways) -> Choice:
        seconds = way.seconds(operator, setting) / samples
        return Choice(str(way), seconds, seconds, way.held_bytes(operator, setting))

    layers = tuple(
        Layers(
            o.name,
            o.count,
            tuple(choice(o, w) for w in ways(o) if w.gathered_bytes(o) <= gathered_bytes),
        )
        for o in operators
    )
    held = samples * setting.sample_bytes + gathered_bytes
    compute = setting.sample_seconds
    return Problem((Stage(layers, setting.budget_bytes, held, compute, compute),), 1)


def best(
    operators: Sequence[Operator],
    setting: Setting,
    ways: Callable[[Operator], Iterable[Ways]] = every,
) -> Kept | None:
    """The most samples per second, or None where not even one sample fits. `ways` are those in which
    an operator may be kept: `sharded` for plain FSDP."""
    needed = max(min(w.gathered_bytes(o) for w in ways(o)) for o in operators)
    found = {w.gathered_bytes(o) for o in operators for w in ways(o)}
    sizes = sorted(size for size in found if size >= needed)
    least = sum(min(w.held_bytes(o, setting) for w in ways(o)) * o.count for o in operators)
    asked = [
        (samples, problem(operators, setting, samples, size, ways))
        for samples in _batches(setting, least)
        for size in sizes
    ]
    made = fastest([p for _, p in asked], OneForwardOneBackward())
    return made and _kept(*asked[made.number], made)


def _batches(setting: Setting, least_bytes: int) -> Iterator[int]:
    """Numbers of samples whose activations fit beside the least of states."""
    for samples in count(1):
        if samples * setting.sample_bytes + least_bytes > setting.budget_bytes:
            return
        yield samples


def _kept(samples: int, problem: Problem, found: Best) -> Kept:
    (counts,) = found.solution.counts
    (stage,) = problem.stages
    named = tuple(
        {c.name: n for c, n in zip(layers.choices, own, strict=True) if n}
        for layers, own in zip(stage.layers, counts, strict=True)
    )
    return Kept(samples, found.solution.step_seconds, named, found.solution.gap)
