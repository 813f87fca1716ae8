"""Decode and reduce over ranks in C++: sums accumulate, robust rules load all ranks."""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.compression.kernel import CompressionKernel
from ...ir.compression.stage import Reduce
from .cpp_text import number


def reduction(stage: Reduce | None, kernel: CompressionKernel, decode: list[str]) -> Iterator[str]:
    """Print code that fills `x` from the messages of all ranks.

    `decode`: lines that fill `y` from the message `in`.
    """
    robust = stage is not None and stage.rule not in ("sum", "mean")
    if robust:
        yield "V rows[RANKS][VECTORS];"
    yield "for (int64_t rank = 0; rank < RANKS; ++rank) {"
    yield "  const uint8_t* const in = source + (rank * CHUNKS + chunk) * source_bytes;"
    yield "  V* const y = rows[rank];" if robust else "  V y[VECTORS];"
    for line in decode:
        yield f"  {line}"
    if not robust:
        yield "  for (int i = 0; i < VECTORS; ++i) x[i] = rank ? x[i] + y[i] : y[i];"
    yield "}"
    if stage is not None and stage.rule == "mean" and kernel.ranks > 1:
        yield f"for (int i = 0; i < VECTORS; ++i) x[i] = x[i] * {number(1 / kernel.ranks)};"
    if robust:
        assert stage is not None
        yield from _robust(stage, kernel.ranks)


def _robust(stage: Reduce, ranks: int) -> Iterator[str]:
    yield "for (int i = 0; i < VECTORS; ++i) {"
    yield "  V value[RANKS], key[RANKS];"
    yield "  for (int r = 0; r < RANKS; ++r) key[r] = value[r] = rows[r][i];"
    yield from _sort()
    if stage.rule == "median":
        yield f"  x[i] = (value[{(ranks - 1) // 2}] + value[{ranks // 2}]) * 0.5f;"
    else:
        yield from _mean("middle", stage.drop, ranks - stage.drop)
        if stage.rule == "phocas":
            yield "  for (int r = 0; r < RANKS; ++r) key[r] = magnitude(value[r] - middle);"
            yield from _sort()
            yield from _mean("near", 0, ranks - stage.drop)
        yield f"  x[i] = {'near' if stage.rule == 'phocas' else 'middle'};"
    yield "}"


def _sort() -> Iterator[str]:
    """Bubble sort of `value` by `key`, the same pairs in the same order on every backend."""
    yield "  for (int last = RANKS - 1; last > 0; --last)"
    yield "    for (int r = 0; r < last; ++r) exchange(key[r], key[r + 1], value[r], value[r + 1]);"


def _mean(name: str, first: int, last: int) -> Iterator[str]:
    yield f"  V {name} = value[{first}];"
    yield f"  for (int r = {first + 1}; r < {last}; ++r) {name} = {name} + value[r];"
    yield f"  {name} = {name} * {number(1 / (last - first))};"
