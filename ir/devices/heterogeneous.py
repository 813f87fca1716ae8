"""A fleet: clusters of different devices joined by a link, and plans that use all of them.

    line 0   crew of 2 h100: layers 0-20  ->  crew of 2 a100: layers 21-31      12 micro-batches
    line 1   crew of 1 a100: layers 0-31                                         4 micro-batches

A line is a pipeline of its own: it has all layers, cut as its devices need it, and its share of the
micro-batches. Lines add up their gradients once per step. (FlashFlex, Yan et al. 2024.)
"""

from __future__ import annotations

from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from ..errors import FileError
from ..plan.plan import Memory, Optimizer, Span, Stage
from ..plan.strategy import Strategy
from .cluster import (
    MOST_DEVICES,
    Cluster,
    Device,
    Link,
    cluster_of,
    parse_cluster,
    parse_link,
    read_toml,
)


class Fleet(msgspec.Struct, frozen=True):
    """Clusters joined by a link; ranks count through one part after the other."""

    name: str
    parts: tuple[Cluster, ...]
    link: Link

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise ValueError("parts: a fleet has at least two")
        if self.devices > MOST_DEVICES:
            raise ValueError(f"parts: {self.devices} devices")

    @property
    def devices(self) -> int:
        return sum(part.devices for part in self.parts)

    @property
    def first_ranks(self) -> tuple[int, ...]:
        """The rank of every part's first device."""
        return tuple(accumulate((part.devices for part in self.parts[:-1]), initial=0))

    def budget(self, part: int, asked: int | None) -> int:
        """Bytes of a part's device that a plan may use, where a user `asked` for no more, if at all."""
        have = self.parts[part].device.memory_bytes
        return have if asked is None else min(have, asked)

    def as_slowest(self) -> Cluster:
        """All devices as if each were the worst of them in everything, on the slowest link."""
        devices = [part.device for part in self.parts]
        slowest = min(devices, key=lambda d: d.peak("bfloat16") * d.achievable * d.sustained)
        device = replace(
            slowest,
            memory_bytes=min(d.memory_bytes for d in devices),
            memory_bandwidth_bytes_per_second=min(
                d.memory_bandwidth_bytes_per_second for d in devices
            ),
        )
        return Cluster(self.name, device, (replace(self.link, size=self.devices),))

    def same(self) -> Cluster | None:
        """The fleet as one cluster, where its parts do not differ."""
        first = self.parts[0]
        if any((p.device, p.levels) != (first.device, first.levels) for p in self.parts):
            return None
        return Cluster(
            self.name, first.device, (replace(self.link, size=len(self.parts)), *first.levels)
        )

    def __str__(self) -> str:
        return f"{self.name}: " + " + ".join(f"{p.devices} × {p.device.kind}" for p in self.parts)


def parse_fleet(path: Path, kinds: dict[str, Device]) -> Cluster | Fleet:
    """A cluster, or a fleet where a TOML file has `[[part]]` tables, each as a cluster's file, and the
    `[link]` between them. Raises FileError with the key that is wrong."""
    data = read_toml(path)
    tables = data.get("part")
    if tables is None:
        return parse_cluster(path, kinds)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise FileError(f"{path}: part: tables are needed")
    try:
        parts = tuple(
            cluster_of(path, {"name": f"part {number}", **table}, kinds)
            for number, table in enumerate(tables)
        )
        link = parse_link({"size": len(parts), **data.get("link", {})}, f"{path}: link")
        return Fleet(str(data.get("name", path.stem)), parts, link)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None


def taken(part: Cluster, width: int) -> Cluster:
    """So many neighbouring devices of a part as a cluster: inner levels whole, then one cut."""
    levels: list[Link] = []
    left = width
    for level in reversed(part.levels):
        size = min(level.size, left) if left % min(level.size, left) == 0 else left
        levels.insert(0, replace(level, size=size))
        left //= size
        if left == 1:
            break
    assert prod(level.size for level in levels) == width, f"{width} devices of {part}"
    return Cluster(part.name, part.device, tuple(levels))


class Crew(msgspec.Struct, frozen=True):
    """Devices that are one stage of a line: `width` of a part, from its device `first` on, their
    strategy among themselves, what they remember, and the calls they run with times and bytes."""

    part: int
    first: int
    strategy: Strategy
    memory: Memory
    stage: Stage

    @property
    def width(self) -> int:
        return self.strategy.devices

    @property
    def calls(self) -> Span:
        """The first of its calls, and the one after the last."""
        return self.stage.pieces[0]

    def ranks(self, fleet: Fleet) -> range:
        start = fleet.first_ranks[self.part] + self.first
        return range(start, start + self.width)


class Line(msgspec.Struct, frozen=True):
    """A pipeline of crews, and how many micro-batches of a step it runs."""

    micro_batches: int
    crews: tuple[Crew, ...]
    seconds: float = 0.0


class FleetPlan(msgspec.Struct, frozen=True):
    """Who does what in a fleet, and what it is predicted to cost. `micro_batch` samples are one
    micro-batch; `alone` says how fast each part would be without the others, and all devices as if
    they were the slowest (the last); None where that does not fit."""

    model: str
    model_digest: str
    fleet: Fleet
    global_batch: int
    micro_batch: int
    precision: str
    optimizer: Optimizer
    lines: tuple[Line, ...]
    sync_seconds: float
    step_seconds: float
    tokens_per_second: float
    bound_seconds: float
    alone: tuple[float | None, ...] = ()
    calls: tuple[str, ...] = ()
    status: Literal["optimal", "feasible"] = "feasible"
    memory_bytes: int | None = None  # a user's budget per device
    complete: bool = True

    @property
    def gap(self) -> float:
        return max(0.0, 1 - self.bound_seconds / self.step_seconds)

    def budget(self, crew: Crew) -> int:
        """Bytes of one of a crew's devices that a plan may use."""
        return self.fleet.budget(crew.part, self.memory_bytes)
