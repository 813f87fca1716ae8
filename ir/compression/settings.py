"""Settings of an algorithm in its name: `random-k:rate=1000`, `cser:r1=16,r2=256,every=8`.

    rate    of a selection: one element (row) in so many is sent; `r2` in every step, `r1` in exchanges
    warmup  uncompressed steps before the first compressed one
    every   steps from one exchange to the next
    delay   steps after which sums of gradients are used, 0: at once
    doubles steps after which the distance of exchanges doubles, up to `most`
    ready   ranks that average their weights, the first that are ready
    seed    not 0: groups are drawn from it, not by who is ready
    drop    ranks that may send anything (b of m)
    zeros   1: signs have a third code, zero, in two bits; 0: one bit, in which a zero is a plus

An algorithm lists those that it takes. The variant is an algorithm like any other: plans name it, prices
and programs follow from its stages and its schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from msgspec.structs import replace

from ..errors import UsageError
from ..unknown_name import unknown_name
from .check import check
from .program import CompressionAlgorithm, CompressionProgram
from .stage import Centroids, CompressionStage, Quantize, Reduce, Score, Select

T = TypeVar("T")
StageRule = Callable[[CompressionProgram, CompressionStage, int], CompressionStage]
SCHEDULED = ("warmup", "every", "doubles", "most", "delay", "ready", "seed")
MOST = {"zeros": 1, "delay": 8}


def _rate(program: CompressionProgram, stage: CompressionStage, value: int) -> CompressionStage:
    return replace(stage, ratio=value) if isinstance(stage, Select | Centroids) else stage


def _r1(program: CompressionProgram, stage: CompressionStage, value: int) -> CompressionStage:
    return _rate(program, stage, value) if program.when == "exchange" else stage


def _r2(program: CompressionProgram, stage: CompressionStage, value: int) -> CompressionStage:
    return _rate(program, stage, value) if program.when == "always" else stage


def _drop(program: CompressionProgram, stage: CompressionStage, value: int) -> CompressionStage:
    drops = isinstance(stage, Reduce | Score) and stage.drop
    return replace(stage, drop=value) if drops else stage


def _zeros(program: CompressionProgram, stage: CompressionStage, value: int) -> CompressionStage:
    signs = isinstance(stage, Quantize) and stage.codes == "sign"
    return replace(stage, bits=2 if value else 1) if signs else stage


OF_STAGES: dict[str, StageRule] = {
    "rate": _rate,
    "r1": _r1,
    "r2": _r2,
    "drop": _drop,
    "zeros": _zeros,
}
LATE_VECTORS = 2  # per step of delay: what is under way, and a rank's own part of it
LEAST = {"ready": 2, "rate": 2, "r1": 2, "r2": 2, "every": 1, "doubles": 1, "most": 1, "drop": 1}


def with_settings(algorithm: CompressionAlgorithm, text: str) -> CompressionAlgorithm:
    """The variant of an algorithm under settings such as `rate=1000`. Raises UsageError."""
    settings = dict(_parsed(algorithm, text))
    scheduled = {name: value for name, value in settings.items() if name in SCHEDULED}
    schedule = replace(algorithm.schedule, **scheduled)
    if "doubles" in settings and schedule.most <= schedule.every:
        raise UsageError(f"{algorithm.name}:{text}: most is not above every={schedule.every}")
    name = f"{algorithm.name}:{text}"
    programs = tuple(_program(p, algorithm.name, name, settings) for p in algorithm.programs)
    more = LATE_VECTORS * (schedule.delay - algorithm.schedule.delay)
    return replace(
        algorithm, name=name, programs=programs, schedule=schedule, vectors=algorithm.vectors + more
    )


def _parsed(algorithm: CompressionAlgorithm, text: str) -> Iterator[tuple[str, int]]:
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in algorithm.settings:
            known = ", ".join(algorithm.settings) or "none"
            raise UsageError(f"{algorithm.name}:{text}: no setting {name!r:.40}; it has {known}")
        if not (equals and value.isdecimal() and len(value) < 10):
            raise UsageError(f"{algorithm.name}:{text}: {part!r:.40} is not {name}=NUMBER")
        if not LEAST.get(name, 0) <= int(value) <= MOST.get(name, int(value)):
            raise UsageError(f"{algorithm.name}:{text}: {name} cannot be {value}")
        yield name, int(value)


def _program(
    program: CompressionProgram, before: str, after: str, settings: Mapping[str, int]
) -> CompressionProgram:
    stages = list(program.stages)
    for name, value in settings.items():
        if name in OF_STAGES:
            stages = [OF_STAGES[name](program, stage, value) for stage in stages]
    variant = replace(program, name=after + program.name[len(before) :], stages=tuple(stages))
    check(variant)
    return variant


class WithVariants(Mapping[str, T]):
    """What has a name, and the variants that names with settings stand for; it lists the former.

    `variant` makes one, or gives None where no such thing is known.
    """

    def __init__(self, known: Mapping[str, T], variant: Callable[[str], T | None]) -> None:
        self.known, self.variant = known, variant

    def __getitem__(self, name: str) -> T:
        if name in self.known:
            return self.known[name]
        variant = self._variant(name) if ":" in name else None
        if variant is None:
            raise KeyError(name)
        return variant

    def _variant(self, name: str) -> T | None:
        try:
            return self.variant(name)
        except (UsageError, KeyError):
            return None

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def algorithm_named(name: str, known: Mapping[str, CompressionAlgorithm]) -> CompressionAlgorithm:
    """The algorithm of a name with or without settings. Raises UsageError."""
    base, colon, settings = name.partition(":")
    if base not in known:
        raise UsageError(unknown_name("compression algorithm", base, known))
    return with_settings(known[base], settings) if colon else known[base]
