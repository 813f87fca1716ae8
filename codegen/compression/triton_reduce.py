"""Decode and reduce over ranks in Triton: sums in a loop, robust rules load all ranks."""

from __future__ import annotations

from collections.abc import Iterator

from ...ir.compression.kernel import CompressionKernel
from ...ir.compression.stage import Reduce


def reduction(stage: Reduce | None, kernel: CompressionKernel, decode: list[str]) -> Iterator[str]:
    """Print code that fills `x` from the messages of all ranks.

    `decode`: lines that fill `y` from the message number `message`.
    """
    if stage is not None and stage.rule not in ("sum", "mean"):
        yield from _robust(stage, kernel, decode)
        return
    yield "message = chunk"
    yield from decode
    yield "x = y"
    if kernel.ranks > 1:
        yield f"for rank in range(1, {kernel.ranks}):"
        yield f"    message = rank * {kernel.chunks} + chunk"
        for line in decode:
            yield f"    {line}"
        yield "    x = x + y"
        if stage is not None and stage.rule == "mean":
            yield f"x = x * {1 / kernel.ranks!r}"


def _robust(stage: Reduce, kernel: CompressionKernel, decode: list[str]) -> Iterator[str]:
    ranks = kernel.ranks
    for rank in range(ranks):
        yield f"message = {rank * kernel.chunks} + chunk"
        yield from decode
        yield f"value{rank} = y"
        yield f"key{rank} = y"
    yield from _sort(ranks)
    if stage.rule == "median":
        yield f"x = (value{(ranks - 1) // 2} + value{ranks // 2}) * 0.5"
        return
    yield from _mean("x", stage.drop, ranks - stage.drop)
    if stage.rule == "phocas":
        for rank in range(ranks):
            yield f"key{rank} = tl.abs(value{rank} - x)"
        yield from _sort(ranks)
        yield from _mean("x", 0, ranks - stage.drop)


def _sort(ranks: int) -> Iterator[str]:
    """Bubble sort of values by keys, the same pairs in the same order on every backend."""
    for last in range(ranks - 1, 0, -1):
        for r in range(last):
            yield f"swap = key{r} > key{r + 1}"
            for name in ("key", "value"):
                one, two = f"{name}{r}", f"{name}{r + 1}"
                yield f"lower = tl.where(swap, {two}, {one})"
                yield f"{two} = tl.where(swap, {one}, {two})"
                yield f"{one} = lower"


def _mean(name: str, first: int, last: int) -> Iterator[str]:
    yield f"total = value{first}"
    for r in range(first + 1, last):
        yield f"total = total + value{r}"
    yield f"{name} = total * {1 / (last - first)!r}"
