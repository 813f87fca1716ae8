"""Bytes that compressed messages take, counted from the programs that run, against plain messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from plait.ir.compression.lower import lower
from plait.ir.compression.registry import PROGRAMS, algorithm

ELEMENTS = 2**24
NODES, PER_NODE = 2, 2  # ranks inside a node, and nodes: rates depend little on them
RANKS = NODES * PER_NODE


def sent(program: str) -> float:
    """Bytes that a rank sends of an element that it holds."""
    shards = RANKS if PROGRAMS[program].collective == "all_gather" else 1
    elements = ELEMENTS * PROGRAMS[program].vectors // shards
    return lower(PROGRAMS[program], PER_NODE, NODES).sent_bytes(elements) / ELEMENTS


def plain(item_bytes: float, collective: str = "all_reduce") -> float:
    """The same of a ring without compression."""
    times = 2 if collective == "all_reduce" else 1
    return times * (RANKS - 1) / RANKS * item_bytes


def per_step(name: str) -> float:
    """Bytes of an element in a step of an algorithm after its warm-up, in the mean."""
    chosen = algorithm(name)
    return sum(chosen.rate(p) * sent(p.name) for p in chosen.programs)


def times_less(name: str, item_bytes: float, warmup: float = 0.0) -> Callable[[Path | None], float]:
    """How many times less an algorithm sends than all-reduces of `item_bytes`, when the part
    `warmup` of all steps is one of those."""

    def measure(_: Path | None) -> float:
        full = plain(item_bytes)
        return full / (warmup * full + (1 - warmup) * per_step(name))

    return measure


def less_than(name: str, other: str, warmup: float = 0.0) -> Callable[[Path | None], float]:
    """Percent that an algorithm sends less than another, both with a full-size warm-up."""

    def measure(_: Path | None) -> float:
        full = plain(2)
        own, others = (warmup * full + (1 - warmup) * per_step(n) for n in (name, other))
        return 100 * (1 - own / others)

    return measure


def zeropp(_: Path | None) -> float:
    """Times less than zero3's two gathers and one reduce-scatter in 16 bits."""
    full = 3 * plain(2, "all_gather")
    return full / (2 * sent("zero++.weights") + sent("zero++.gradients"))


def sdp4bit_bits(_: Path | None) -> float:
    """Bits of a weight on the wire, by rank that receives it."""
    return 8 * sent("sdp4bit.weights") / ((RANKS - 1) / RANKS)


def rows_asked_once(_: Path | None) -> float:
    """Percent of rows of tables that need not travel where a rank asks once for each that it reads:
    1,024 samples of 26 categories, of which the n-th of a million is read as often as 1/n."""
    rows, looked_up = 10**6, (1024, 26)
    generator = torch.Generator().manual_seed(0)
    frequency = 1 / torch.arange(1, rows + 1, dtype=torch.float64)
    ends = frequency.cumsum(0) / frequency.sum()
    drawn = torch.rand(looked_up, generator=generator, dtype=torch.float64)
    categories = torch.searchsorted(ends, drawn).clamp(max=rows - 1)
    distinct = sum(len(column.unique()) for column in categories.unbind(1))
    return 100 * (1 - distinct / categories.numel())
