"""Plans of Aceso: stages of operators, each with its own degrees, algorithm and recompute flag."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import msgspec


class Degrees(NamedTuple):
    """How an operator is split over the GPUs of its stage: tensor and data degree, algorithm."""

    tensor: int
    data: int
    algorithm: int = 0

    @property
    def gpus(self) -> int:
        return self.tensor * self.data


class AcesoStage(msgspec.Struct, frozen=True):
    """Degrees and recompute flags of the operators of one stage, in order."""

    degrees: tuple[Degrees, ...]
    recompute: tuple[bool, ...]

    @property
    def gpus(self) -> int:
        return self.degrees[0].gpus


class AcesoPlan(msgspec.Struct, frozen=True):
    """Stages on micro-batches of `micro_batch` samples."""

    micro_batch: int
    stages: tuple[AcesoStage, ...]

    @staticmethod
    def parse(data: dict[str, Any]) -> AcesoPlan:
        """A plan from its JSON, where equal neighbours are runs."""
        return AcesoPlan(data["base_micro_batch"], tuple(map(_stage, data["stages"])))


def _stage(data: dict[str, Any]) -> AcesoStage:
    columns = (_unrolled(data[key]) for key in ("tp", "dp", "algorithm"))
    degrees = tuple(Degrees(*row) for row in zip(*columns, strict=True))
    return AcesoStage(degrees, tuple(map(bool, _unrolled(data["recompute"]))))


def _unrolled(runs: Sequence[tuple[int, int]]) -> list[int]:
    return list(chain.from_iterable(repeat(value, count) for count, value in runs))
