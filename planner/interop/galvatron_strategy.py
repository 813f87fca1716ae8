"""Galvatron's strategy of a layer: pipeline, tensor or Ulysses, and data degrees, ZeRO-3,
recomputation.

Its text is `pp-tp-dp`: `2-4*-1-c` splits a layer over 4 ranks (`*`), `1-2*-4f-sp` splits
sequences over 2 (`sp`) and states over all 8 ranks (`f`), `-c` recomputes the layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

PATTERN = re.compile(r"(\d+)-(\d+)\*?-(\d+)(f?)(-c)?(-sp)?")


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
    def state_degree(self) -> int:
        """Ranks with the same parameters, over which gradients are reduced and states sharded."""
        return self.replicas * self.ranks if self.ulysses else self.replicas

    def __str__(self) -> str:
        star = "*" if self.ranks > 1 else ""
        suffix = "f" * self.zero3 + "-c" * self.recompute + "-sp" * self.ulysses
        return f"{self.stages}-{self.ranks}{star}-{self.replicas}{suffix}"


def parse(text: str) -> GalvatronStrategy:
    """Parse the text of a strategy; raises ValueError for anything else."""
    match = PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no Galvatron strategy such as 2-4*-1-c")
    stages, ranks, replicas = map(int, match.groups()[:3])
    return GalvatronStrategy(stages, ranks, replicas, *map(bool, match.groups()[3:]))


def powers(limit: int) -> Iterator[int]:
    """1, 2, 4, ... up to a limit."""
    degree = 1
    while degree <= limit:
        yield degree
        degree *= 2


def strategies(
    devices: int, stages: int, most_ranks: int, most_replicas: int, recompute: bool
) -> Iterator[GalvatronStrategy]:
    """Every strategy of a layer in a pipeline of this many stages."""
    devices_per_stage = devices // stages
    for ranks in powers(min(devices_per_stage, most_ranks)):
        replicas = devices_per_stage // ranks
        if replicas > most_replicas:
            continue
        for ulysses in (False, True)[: 1 + (ranks > 1)]:
            for zero3 in (False, True)[: 1 + (replicas > 1)]:
                for recomputes in (False, True)[: 1 + recompute]:
                    yield GalvatronStrategy(stages, ranks, replicas, zero3, recomputes, ulysses)


class GalvatronBatch(msgspec.Struct, frozen=True):
    """A global batch in micro-batches."""

    samples: int
    micro_batches: int

    def local(self, strategy: GalvatronStrategy) -> int:
        """Samples of one micro-batch on one replica."""
        return self.samples // self.micro_batches // strategy.replicas
