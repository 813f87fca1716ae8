"""A cluster: its devices' speeds and memory, and the hierarchy of links between them."""

from __future__ import annotations

import math
import tomllib
from math import prod
from pathlib import Path
from typing import Any

import msgspec

from ..errors import FileError
from .curve import Curve, parse_curve

NETWORK_BYTES_PER_SECOND = 0.625e9  # 5 Gbit/s Ethernet; links inside a machine are faster
MAX_DEVICES = 10**9
DEFAULT_SOURCE = "given with the cluster"
HOST_BYTES_PER_SECOND = 25e9  # PCIe 4.0 x16, where nothing else is said
HOST_BYTES = 128 * 10**9  # per device, where nothing else is said
DEFAULT_SOURCES = {
    "sustained": "assumed: not limited",
    "host_gb_per_s": "assumed: PCIe 4.0 x16",
    "host_memory_gb": "assumed: 1 TB for 8 devices",
}
# fmt: off
SOURCED_KEYS = (
    "tflops", "achievable", "sustained", "memory_gb", "memory_gb_per_s", "launch_us", "runtime_gb",
    "host_gb_per_s", "host_memory_gb",
)
# fmt: on


class Device(msgspec.Struct, frozen=True):
    """A kind of device: peak rates, memory, overheads.

    `peak_flops` by torch type name, `achievable` the fraction of it that the largest matrix products
    reach, `sustained` the fraction of that under the power limit in long runs. `source` says where
    the numbers come from, `sources` where single ones do, by TOML key. `curves` are measured costs;
    they take precedence over costs computed from the other numbers. `ranks_per_processor`: ranks that
    share a processor; seconds are those of a rank while all of them work.
    `host_bandwidth_bytes_per_second`: between device and host memory, per direction;
    `host_memory_bytes`: the device's share of host memory; `host_copies_hide`: copies overlap with
    work (not where the device is the host).
    """

    kind: str
    memory_bytes: int
    peak_flops: dict[str, float]
    achievable: float
    memory_bandwidth_bytes_per_second: float
    launch_overhead_seconds: float
    runtime_overhead_bytes: int
    source: str = ""
    sources: dict[str, str] = {}
    sustained: float = 1.0
    curves: tuple[Curve, ...] = ()
    ranks_per_processor: float = 1.0
    host_bandwidth_bytes_per_second: float = HOST_BYTES_PER_SECOND
    host_memory_bytes: int = HOST_BYTES
    host_copies_hide: bool = True

    def __post_init__(self) -> None:
        _sensible(self.memory_bytes, "memory_bytes")
        _sensible(self.achievable, "achievable", most=1.0)
        _sensible(self.sustained, "sustained", most=1.0)
        if not 1 <= self.ranks_per_processor <= MAX_DEVICES:
            raise ValueError(f"ranks_per_processor: {self.ranks_per_processor!r:.40} is below 1")
        _sensible(self.memory_bandwidth_bytes_per_second, "memory_bandwidth_bytes_per_second")
        _sensible(self.host_bandwidth_bytes_per_second, "host_bandwidth_bytes_per_second")
        _sensible(self.host_memory_bytes, "host_memory_bytes", zero=True)
        _sensible(self.launch_overhead_seconds, "launch_overhead_seconds", zero=True)
        _sensible(self.runtime_overhead_bytes, "runtime_overhead_bytes", zero=True)
        for dtype, rate in self.peak_flops.items():
            _sensible(rate, f"peak_flops.{dtype}")
        if "float32" not in self.peak_flops:
            raise ValueError("peak_flops: float32 is needed; it stands for types not listed")

    def peak(self, dtype: str) -> float:
        """flop/s of matrix products in a type; fp32's where the type has no rate of its own."""
        return self.peak_flops.get(dtype, self.peak_flops["float32"])

    def curve(self, names: tuple[str, ...], dtype: str) -> Curve | None:
        """The measured cost under the first of these names that has one, else None."""
        for name in names:
            for curve in self.curves:
                if curve.name == name and (curve.by == "bytes" or curve.dtype == dtype):
                    return curve
        return None

    def source_of(self, key: str) -> str:
        """Where the number under a TOML key comes from."""
        return self.sources.get(key) or self.source or DEFAULT_SOURCE


class Link(msgspec.Struct, frozen=True):
    """One level: `size` groups of the next level in, joined by links of this kind.

    Bandwidth is per device and direction; `whole_reductions`: reduce-scatter moves what all-reduce
    moves (gloo). `source`: where the numbers come from. `curves` are measured costs of collectives.
    """

    name: str
    size: int
    latency_seconds: float
    bandwidth_bytes_per_second: float
    whole_reductions: bool = False
    source: str = ""
    curves: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        _sensible(self.size, "size", most=MAX_DEVICES)
        _sensible(self.latency_seconds, "latency_seconds", zero=True)
        _sensible(self.bandwidth_bytes_per_second, "bandwidth_bytes_per_second")

    def curve(self, kind: str, ranks: int) -> Curve | None:
        """The measured cost of a collective in groups of this many ranks."""
        return next((c for c in self.curves if (c.name, c.ranks) == (kind, ranks)), None)


class Cluster(msgspec.Struct, frozen=True):
    """Devices of one kind under levels of links, outermost first; ranks count through the innermost
    level fastest."""

    name: str
    device: Device
    levels: tuple[Link, ...]

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels: at least one is needed")
        _sensible(self.devices, "devices", most=MAX_DEVICES)

    @property
    def devices(self) -> int:
        return prod(level.size for level in self.levels)

    def slowest_link(self, stride: int, size: int) -> Link:
        """The slowest link inside any group of `size` ranks, `stride` apart.

        Groups fill blocks of `size * stride` ranks; blocks that do not divide a unit straddle two.
        """
        block, inner = size * stride, 1
        for level in reversed(self.levels):
            inner *= level.size
            if inner % block == 0:
                return level
        return self.levels[0]

    def link_between(self, first: int, last: int) -> Link:
        """The innermost link that joins all ranks from `first` to `last`."""
        inner = 1
        for level in reversed(self.levels):
            inner *= level.size
            if first // inner == last // inner:
                return level
        return self.levels[0]

    def neighbours_per_node(self, size: int, stride: int) -> int:
        """Ranks of a group (`size` ranks, `stride` apart) that share a node: a unit of the innermost
        level, if its link is faster than a network's. 1 where the ranks do not fill nodes evenly."""
        unit, bandwidth = self.levels[-1].size, self.levels[-1].bandwidth_bytes_per_second
        if bandwidth <= NETWORK_BYTES_PER_SECOND:
            return 1
        ranks = min(max(unit // stride, 1) if unit % stride == 0 else 1, size)
        return ranks if size % ranks == 0 else 1

    def devices_within(self, level: int) -> int:
        """Devices inside one group of a level (0 is the outermost)."""
        return prod(link.size for link in self.levels[level + 1 :])

    def __str__(self) -> str:
        links = " · ".join(f"{link.size} {link.name}" for link in self.levels)
        return f"{self.name}: {self.devices} × {self.device.kind} ({links})"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises FileError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: not TOML: {error}") from None


def parse_cluster(path: Path, kinds: dict[str, Device]) -> Cluster:
    """A cluster from TOML: `kind` or a `[device]` table, and `[[level]]` tables, outermost first.

    Bandwidths in GB/s per device and direction, latencies in microseconds. Raises FileError with the
    key that is wrong.
    """
    data = read_toml(path)
    try:
        return cluster_from_tables(path, data, kinds)
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None


def cluster_from_tables(path: Path, data: dict[str, Any], kinds: dict[str, Device]) -> Cluster:
    """A cluster from the tables of a TOML file; raises ValueError or FileError."""
    device = kinds.get(str(data.get("kind", "")))
    if device is None:
        table = data.get("device")
        if not isinstance(table, dict):
            raise FileError(f"{path}: kind: name one of {', '.join(sorted(kinds))}, or a [device]")
        device = parse_device(table, f"{path}: device")
    levels = data.get("level")
    if not isinstance(levels, list) or not levels:
        raise FileError(f"{path}: level: at least one [[level]] is needed")
    links = tuple(parse_link(x, f"{path}: level[{i}]") for i, x in enumerate(levels))
    return Cluster(str(data.get("name", path.stem)), device, links)


def parse_device(table: dict[str, object], where: str) -> Device:
    """A device from a TOML table; see cost_model/hardware for the keys."""
    peaks = table.get("tflops")
    if not isinstance(peaks, dict) or "float32" not in peaks:
        raise FileError(f"{where}.tflops: a table with at least float32 is needed")
    return Device(
        kind=str(table.get("kind", "device")),
        memory_bytes=int(_number(table, "memory_gb", where) * 1e9),
        peak_flops={str(k): _number(peaks, str(k), f"{where}.tflops") * 1e12 for k in peaks},
        achievable=_number(table, "achievable", where),
        memory_bandwidth_bytes_per_second=_number(table, "memory_gb_per_s", where) * 1e9,
        launch_overhead_seconds=_number(table, "launch_us", where) * 1e-6,
        runtime_overhead_bytes=int(_number(table, "runtime_gb", where) * 1e9),
        source=str(table.get("source", "")),
        sources=_sources(table, where),
        sustained=_number(table, "sustained", where) if "sustained" in table else 1.0,
        curves=_curves(table, where),
        ranks_per_processor=_number(
            {"ranks_per_processor": 1.0} | table, "ranks_per_processor", where
        ),
        host_bandwidth_bytes_per_second=1e9
        * _number({"host_gb_per_s": HOST_BYTES_PER_SECOND / 1e9} | table, "host_gb_per_s", where),
        host_copies_hide=bool(table.get("host_copies_hide", True)),
        host_memory_bytes=int(
            1e9 * _number({"host_memory_gb": HOST_BYTES / 1e9} | table, "host_memory_gb", where)
        ),
    )


def _sources(table: dict[str, object], where: str) -> dict[str, str]:
    sources = table.get("sources", {})
    if not isinstance(sources, dict):
        raise FileError(f"{where}.sources: not a table")
    for key, text in sources.items():
        if key not in SOURCED_KEYS or not isinstance(text, str):
            raise FileError(
                f"{where}.sources.{key}: a text for one of {', '.join(SOURCED_KEYS)} is needed"
            )
    return {key: text for key, text in DEFAULT_SOURCES.items() if key not in table} | sources


def parse_link(table: object, where: str) -> Link:
    """A link from a TOML table."""
    if not isinstance(table, dict):
        raise FileError(f"{where}: not a table")
    size = table.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_DEVICES:
        raise FileError(f"{where}.size: {size!r} is not a number of groups")
    return Link(
        name=str(table.get("name", "link")),
        size=size,
        latency_seconds=_number(table, "latency_us", where) * 1e-6,
        bandwidth_bytes_per_second=_number(table, "gb_per_s", where) * 1e9,
        whole_reductions=bool(table.get("whole_reductions", False)),
        source=str(table.get("source", "")),
        curves=_curves(table, where),
    )


def _curves(table: dict[str, object], where: str) -> tuple[Curve, ...]:
    curves = table.get("curve", [])
    if not isinstance(curves, list):
        raise FileError(f"{where}.curve: not a list of tables")
    return tuple(parse_curve(x, f"{where}.curve[{i}]") for i, x in enumerate(curves))


def _sensible(number: float, what: str, most: float = 1e21, zero: bool = False) -> None:
    """Raise ValueError unless 0 < number <= most (0 is allowed with `zero`); NaN is refused."""
    if not 0 <= number <= most or (number == 0 and not zero):
        raise ValueError(f"{what}: {number!r:.40} is not a sensible value")


def _number(table: dict[str, object], key: str, where: str) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise FileError(f"{where}.{key}: a number is needed, not {value!r:.40}")
    if not math.isfinite(value) or value <= 0 or value > 1e15:
        raise FileError(f"{where}.{key}: {value} is not a sensible value")
    return float(value)
