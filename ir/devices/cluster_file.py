"""Clusters as TOML files: tables in the units that people write, and the values they stand for.

    name = "lab"                kind = "h100"       [[part]]            clusters of several
    [device]                    [[level]]           kind = "h100"       kinds, joined by
    memory_gb = 80  ...         name = "nvlink"     [[part.level]]      a link
    [[level]]       ...         size = 8  ...       zone = "east"
    [rates]                                         [link]              ... and where another
    dollars_per_hour = 2.5                          gb_per_s = 5        link joins two parts:
    watts = 700                                     latency_us = 20     [[part_link]] parts = [0, 2]

Types and ranges of all keys are checked when a file is read, and unknown keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ..errors import FileError
from .cluster import (
    DEFAULT_SOURCES,
    HOST_BYTES,
    HOST_BYTES_PER_SECOND,
    MAX_DEVICES,
    Cluster,
    Device,
    Link,
    PartLink,
    Rates,
)
from .curve import Curve
from .mixed import mixed_cluster

MOST_BYTES = 1 << 20  # of a file
GIGA, TERA, MICRO = 1e9, 1e12, 1e-6
Positive = Annotated[float, Meta(gt=0, le=1e15)]
Share = Annotated[float, Meta(gt=0, le=1)]
Text = Annotated[str, Meta(max_length=10_000)]
Count = Annotated[int, Meta(ge=1, le=MAX_DEVICES)]
Sourced = Literal[
    "tflops", "achievable", "achievable_of", "sustained", "memory_gb", "memory_gb_per_s", "launch_us",
    "runtime_gb", "host_gb_per_s", "host_memory_gb",
]  # fmt: skip
T = TypeVar("T")


class TomlTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a file; unknown keys are errors."""


class CurveTable(TomlTable, frozen=True, kw_only=True):
    """Measured microseconds `us` at `amounts`, of flops or bytes."""

    name: Text = ""
    by: Literal["flops", "bytes"] = "bytes"
    amounts: tuple[Positive, ...]
    us: tuple[Positive, ...]
    dtype: Text = "float32"
    ranks: Annotated[int, Meta(ge=0, le=MAX_DEVICES)] = 0
    source: Text = ""

    def __post_init__(self) -> None:
        self.curve()

    def curve(self) -> Curve:
        seconds = tuple(us * MICRO for us in self.us)
        return Curve(self.name, self.by, self.amounts, seconds, self.dtype, self.ranks, self.source)


class DeviceTable(TomlTable, frozen=True, kw_only=True):
    """A kind of device; `sources` say of single keys where their numbers come from."""

    kind: Text = "device"
    memory_gb: Positive
    tflops: dict[Text, Positive]
    achievable: Share
    achievable_of: dict[str, Share] = {}
    memory_gb_per_s: Positive
    launch_us: Positive
    runtime_gb: Positive
    source: Text = ""
    sources: dict[Sourced, Text] = {}
    sustained: Share | None = None
    ranks_per_processor: Annotated[float, Meta(ge=1, le=MAX_DEVICES)] = 1.0
    host_gb_per_s: Positive | None = None
    host_memory_gb: Positive | None = None
    host_copies_hide: bool = True
    curve: tuple[CurveTable, ...] = ()

    def __post_init__(self) -> None:
        self.device()

    def device(self, kind: str = "") -> Device:
        """The device, under another name if one is given."""
        assumed = {key: t for key, t in DEFAULT_SOURCES.items() if getattr(self, key) is None}
        host_gb_per_s = self.host_gb_per_s or HOST_BYTES_PER_SECOND / GIGA
        return Device(
            kind=kind or self.kind,
            memory_bytes=int(self.memory_gb * GIGA),
            peak_flops={dtype: rate * TERA for dtype, rate in self.tflops.items()},
            achievable=self.achievable,
            achievable_of=self.achievable_of,
            memory_bandwidth_bytes_per_second=self.memory_gb_per_s * GIGA,
            launch_overhead_seconds=self.launch_us * MICRO,
            runtime_overhead_bytes=int(self.runtime_gb * GIGA),
            source=self.source,
            sources=assumed | {str(key): text for key, text in self.sources.items()},
            sustained=1.0 if self.sustained is None else self.sustained,
            curves=tuple(table.curve() for table in self.curve),
            ranks_per_processor=self.ranks_per_processor,
            host_bandwidth_bytes_per_second=GIGA * host_gb_per_s,
            host_copies_hide=self.host_copies_hide,
            host_memory_bytes=int(GIGA * (self.host_memory_gb or HOST_BYTES / GIGA)),
        )


class LinkTable(TomlTable, frozen=True, kw_only=True):
    """A kind of link: GB/s per device and direction, microseconds a message."""

    name: Text = "link"
    latency_us: Positive
    gb_per_s: Positive
    whole_reductions: bool = False
    source: Text = ""
    curve: tuple[CurveTable, ...] = ()

    def link(self, size: int) -> Link:
        """A level of `size` groups that such links join."""
        return Link(
            name=self.name,
            size=size,
            latency_seconds=self.latency_us * MICRO,
            bandwidth_bytes_per_second=self.gb_per_s * GIGA,
            whole_reductions=self.whole_reductions,
            source=self.source,
            curves=tuple(table.curve() for table in self.curve),
        )


class RatesTable(TomlTable, frozen=True, kw_only=True):
    """What a device costs: dollars an hour, watts at work and waiting, dollars of a GB sent out of its
    zone."""

    dollars_per_hour: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    watts: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    idle_watts: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    dollars_per_gb_out: Annotated[float, Meta(ge=0, le=1e6)] = 0.0

    def rates(self) -> Rates:
        dollars_per_byte = self.dollars_per_gb_out / GIGA
        return Rates(self.dollars_per_hour, self.watts, self.idle_watts, dollars_per_byte)


class LevelTable(LinkTable, frozen=True, kw_only=True):
    """A level: `size` groups of the next level, joined by such links."""

    size: Count


class PartTable(TomlTable, frozen=True, kw_only=True):
    """A cluster of one kind of device, a preset's or its own; levels from the outermost in."""

    name: Text = ""
    kind: Text = ""
    device: DeviceTable | None = None
    rates: RatesTable = RatesTable()
    zone: Annotated[str, Meta(max_length=200)] = ""
    level: Annotated[tuple[LevelTable, ...], Meta(min_length=1)]

    def cluster(self, name: str, kinds: dict[str, Device]) -> Cluster:
        """The cluster, `name` if it has none; `kinds` are devices by preset. Raises ValueError."""
        device = kinds.get(self.kind)
        if device is None:
            if self.device is None:
                raise ValueError(f"kind: name one of {', '.join(sorted(kinds))}, or a [device]")
            device = self.device.device()
        levels = tuple(level.link(level.size) for level in self.level)
        return Cluster(self.name or name, device, levels, rates=self.rates.rates(), zone=self.zone)


class ClusterFile(PartTable, frozen=True, kw_only=True):
    """A file with one cluster."""


class PartLinkTable(LinkTable, frozen=True, kw_only=True):
    """The link between two parts, by their numbers from 0."""

    parts: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]

    def part_link(self) -> PartLink:
        return PartLink(*self.parts, self.link(2))


class MixedFile(TomlTable, frozen=True, kw_only=True):
    """A file with several clusters, the link that joins them, and links of pairs."""

    name: Text = ""
    part: Annotated[tuple[PartTable, ...], Meta(min_length=2, max_length=1024)]
    link: LinkTable
    part_link: tuple[PartLinkTable, ...] = ()

    def cluster(self, name: str, kinds: dict[str, Device]) -> Cluster:
        """The mixed cluster; `kinds` are devices by preset. Raises ValueError."""
        parts = [part.cluster(f"part {n}", kinds) for n, part in enumerate(self.part)]
        links = [table.part_link() for table in self.part_link]
        return mixed_cluster(self.name or name, parts, self.link.link(len(parts)), links)


def parse_cluster(path: Path, kinds: dict[str, Device]) -> Cluster:
    """A cluster from a TOML file; raises FileError with the key that is wrong."""
    return _checked(path, lambda: decode_tables(path, ClusterFile).cluster(path.stem, kinds))


def parse_any_cluster(path: Path, kinds: dict[str, Device]) -> Cluster:
    """A cluster from a TOML file, a mixed one where the file has `[[part]]` tables.

    Raises FileError with the key that is wrong.
    """
    if "part" not in decode_tables(path, dict[str, Any]):
        return parse_cluster(path, kinds)
    return _checked(path, lambda: decode_tables(path, MixedFile).cluster(path.stem, kinds))


def _checked(path: Path, make: Callable[[], T]) -> T:
    """What `make` returns; its ValueErrors name the file."""
    try:
        return make()
    except ValueError as error:
        raise FileError(f"{path}: {error!s:.300}") from None


def decode_tables(path: Path, kind: type[T]) -> T:
    """The tables of a TOML file as a value of `kind`; raises FileError with the key that is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise FileError(f"{path}: larger than {MOST_BYTES} bytes")
        return msgspec.toml.decode(data, type=kind)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise FileError(f"{path}: {_by_key(str(error)):.300}") from None
    except RecursionError:
        raise FileError(f"{path}: not TOML: nested too deep") from None
    except (ValueError, TypeError, LookupError) as error:  # tomllib's, of odd keys and values
        raise FileError(f"{path}: not TOML: {error!s:.300}") from None


def _by_key(message: str) -> str:
    """`device.launch_us: missing`: msgspec's message with the TOML key first."""
    match = re.fullmatch(r"(?s)(.*?) - at `(?:key` in `)?\$\.?(.*)`", message)
    text, key = (match[1], match[2]) if match else (message, "")
    missing = re.fullmatch(r"Object missing required field `(\w+)`", text)
    if missing:
        key, text = ".".join(filter(None, (key, missing[1]))), "is needed"
    return f"{key}: {text}" if key else text
