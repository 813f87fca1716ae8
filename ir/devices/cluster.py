"""A cluster: its devices' speeds and memory, and the hierarchy of links between them."""

from __future__ import annotations

from itertools import accumulate
from math import prod

import msgspec

from .curve import Curve

NETWORK_BYTES_PER_SECOND = 0.625e9  # 5 Gbit/s Ethernet; links inside a machine are faster
MAX_DEVICES = 10**9
DEFAULT_SOURCE = "given with the cluster"
HOST_BYTES_PER_SECOND = 25e9  # PCIe 4.0 x16, where nothing else is said
HOST_BYTES = 128 * 10**9  # per device, where nothing else is said
DEFAULT_SOURCES = {
    "sustained": "not limited where nobody says",
    "host_gb_per_s": "derived: PCIe 4.0 x16, four fifths of it",
    "host_memory_gb": "DGX A100 datasheet: 1 TB for 8 devices",
}


LEAST_SHARE = 1e-6
MOST_SECONDS = 1e6


def _sensible(
    number: float, what: str, least: float = 1.0, most: float = 1e21, zero: bool = False
) -> None:
    """Raise ValueError unless least <= number <= most (0 is allowed with `zero`); NaN is refused."""
    if not (least <= number <= most or (number == 0 and zero)):
        raise ValueError(f"{what}: {number!r:.40} is not a sensible value")


class Device(msgspec.Struct, frozen=True):
    """A kind of device: peak rates, memory, overheads.

    `peak_flops` by torch type name, `achievable` the fraction of it that the largest matrix products
    reach (`achievable_of` a type where it differs), `sustained` the fraction of that under the power
    limit in long runs. `source` says where the numbers come from, `sources` where single ones do, by
    TOML key. `curves` are measured costs; they take precedence over costs computed from the other
    numbers. `ranks_per_processor`: ranks that
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
    achievable_of: dict[str, float] = {}
    curves: tuple[Curve, ...] = ()
    ranks_per_processor: float = 1.0
    host_bandwidth_bytes_per_second: float = HOST_BYTES_PER_SECOND
    host_memory_bytes: int = HOST_BYTES
    host_copies_hide: bool = True

    def __post_init__(self) -> None:
        _sensible(self.memory_bytes, "memory_bytes")
        _sensible(self.achievable, "achievable", LEAST_SHARE, 1.0)
        _sensible(self.sustained, "sustained", LEAST_SHARE, 1.0)
        if not 1 <= self.ranks_per_processor <= MAX_DEVICES:
            raise ValueError(f"ranks_per_processor: {self.ranks_per_processor!r:.40} is below 1")
        _sensible(self.memory_bandwidth_bytes_per_second, "memory_bandwidth_bytes_per_second")
        _sensible(self.host_bandwidth_bytes_per_second, "host_bandwidth_bytes_per_second")
        _sensible(self.host_memory_bytes, "host_memory_bytes", zero=True)
        _sensible(self.launch_overhead_seconds, "launch_overhead_seconds", 0.0, MOST_SECONDS)
        _sensible(self.runtime_overhead_bytes, "runtime_overhead_bytes", zero=True)
        for dtype, rate in self.peak_flops.items():
            _sensible(rate, f"peak_flops.{dtype}")
        for dtype, share in self.achievable_of.items():
            _sensible(share, f"achievable_of.{dtype}", LEAST_SHARE, 1.0)
        if "float32" not in self.peak_flops:
            raise ValueError("peak_flops: float32 is needed; it stands for types not listed")

    @property
    def kernel_language(self) -> str:
        """What kernels of compressed messages are written in, which programs run and prices mean."""
        return "Triton" if self.host_copies_hide else "C++"

    def peak(self, dtype: str) -> float:
        """flop/s of matrix products in a type; fp32's where the type has no rate of its own."""
        return self.peak_flops.get(dtype, self.peak_flops["float32"])

    def achievable_share(self, dtype: str) -> float:
        """The fraction of a type's peak that the largest matrix products reach."""
        return self.achievable_of.get(dtype, self.achievable)

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
        _sensible(self.latency_seconds, "latency_seconds", 0.0, MOST_SECONDS)
        _sensible(self.bandwidth_bytes_per_second, "bandwidth_bytes_per_second")

    def curve(self, kind: str, ranks: int) -> Curve | None:
        """The measured cost of a collective in groups of this many ranks."""
        return next((c for c in self.curves if (c.name, c.ranks) == (kind, ranks)), None)


class Rates(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device costs: dollars an hour, watts while it works and while it waits, and the dollars
    of a byte that leaves its zone. None: not said."""

    dollars_per_hour: float | None = None
    watts: float | None = None
    idle_watts: float = 0.0
    dollars_per_byte: float = 0.0

    def __post_init__(self) -> None:
        for what in ("dollars_per_hour", "watts", "idle_watts", "dollars_per_byte"):
            _sensible(getattr(self, what) or 0.0, what, least=0.0, most=1e6)
        if self.watts is not None and self.idle_watts > self.watts:
            raise ValueError("idle_watts: more than watts")


class PartLink(msgspec.Struct, frozen=True):
    """The link between two parts of a mixed cluster, where it is not the one that joins all."""

    one: int
    other: int
    link: Link


class Cluster(msgspec.Struct, frozen=True, omit_defaults=True):
    """Devices of one kind under levels of links, outermost first; ranks count through the innermost
    level fastest.

    A mixed cluster has `parts` of different kinds, whose ranks follow each other; `device` and
    `levels` then say what holds for all of them: the slowest device, and the link that joins parts.
    `part_links` are those of pairs that another link joins. `zone` is where the devices stand.
    """

    name: str
    device: Device
    levels: tuple[Link, ...]
    parts: tuple[Cluster, ...] = ()
    part_links: tuple[PartLink, ...] = ()
    rates: Rates = Rates()
    zone: str = ""

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels: at least one is needed")
        _sensible(self.devices, "devices", most=MAX_DEVICES)
        if self.parts and sum(part.devices for part in self.parts) != self.devices:
            raise ValueError("parts: not as many devices as the levels have")
        if len(self.parts) == 1 or any(part.parts for part in self.parts):
            raise ValueError("parts: two at least, of one kind each")
        pairs = {(min(x.one, x.other), max(x.one, x.other)) for x in self.part_links}
        inside = all(0 <= one < other < len(self.parts) for one, other in pairs)
        if not inside or len(pairs) < len(self.part_links):
            raise ValueError("part_links: not pairs of parts, once each")

    @property
    def first_ranks(self) -> tuple[int, ...]:
        """The rank of every part's first device."""
        return tuple(accumulate((part.devices for part in self.parts[:-1]), initial=0))

    def link_of_parts(self, one: int, other: int) -> Link:
        """The link between two parts."""
        pair = {one, other}
        links = (x.link for x in self.part_links if {x.one, x.other} == pair)
        return next(links, self.levels[0])

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
        if self.parts:
            kinds = " + ".join(f"{part.devices} × {part.device.kind}" for part in self.parts)
            return f"{self.name}: {kinds}"
        links = " · ".join(f"{link.size} {link.name}" for link in self.levels)
        return f"{self.name}: {self.devices} × {self.device.kind} ({links})"
