"""How Galvatron runs a layer: pipeline, tensor or Ulysses, and data degrees; ZeRO-3; recomputation.

A word is `pp-tp-dp`: `2-4*-1-c` splits a layer over 4 ranks (`*`), `1-2*-4f-sp` splits sequences
over 2 (`sp`) and states over all 8 ranks (`f`), `-c` recomputes the whole layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

WORD = re.compile(r"(\d+)-(\d+)\*?-(\d+)(f?)(-c)?(-sp)?")


class GalvatronStrategy(msgspec.Struct, frozen=True, order=True):
    """Degrees of one layer, or of embedding and head (which never recompute)."""

    stages: int
    ranks: int  # of tensor parallelism, or of Ulysses
    replicas: int
    zero3: bool = False
    recompute: bool = False
    ulysses: bool = False

    @property
    def tensor_ranks(self) -> int:
        return 1 if self.ulysses else self.ranks

    @property
    def sharing(self) -> int:
        """Ranks with the same parameters, over which gradients add up and states are cut."""
        return self.replicas * self.ranks if self.ulysses else self.replicas

    def __str__(self) -> str:
        star = "*" if self.ranks > 1 else ""
        suffix = "f" * self.zero3 + "-c" * self.recompute + "-sp" * self.ulysses
        return f"{self.stages}-{self.ranks}{star}-{self.replicas}{suffix}"


def parse(word: str) -> GalvatronStrategy:
    """The strategy of a word; ValueError for anything else."""
    found = WORD.fullmatch(word)
    if found is None:
        raise ValueError(f"{word!r} is no Galvatron strategy such as 2-4*-1-c")
    stages, ranks, replicas = map(int, found.groups()[:3])
    return GalvatronStrategy(stages, ranks, replicas, *map(bool, found.groups()[3:]))


def powers(limit: int) -> Iterator[int]:
    """1, 2, 4, ... up to a limit."""
    degree = 1
    while degree <= limit:
        yield degree
        degree *= 2


def strategies(
    devices: int, stages: int, most_ranks: int, most_replicas: int, recompute: bool
) -> Iterator[GalvatronStrategy]:
    """Every strategy of a layer in a pipeline of so many stages."""
    group = devices // stages
    for ranks in powers(min(group, most_ranks)):
        replicas = group // ranks
        if replicas > most_replicas:
            continue
        for ulysses in (False, True)[: 1 + (ranks > 1)]:
            for zero3 in (False, True)[: 1 + (replicas > 1)]:
                for again in (False, True)[: 1 + recompute]:
                    yield GalvatronStrategy(stages, ranks, replicas, zero3, again, ulysses)
