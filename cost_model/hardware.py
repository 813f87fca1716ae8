"""Named hardware: presets shipped as TOML, and the syntax of cluster names on the command line."""

from __future__ import annotations

import difflib
import os
import re
from functools import cache
from importlib import resources
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec.structs import replace

from ..ir.devices.cluster import MAX_DEVICES, Cluster, Device, Link
from ..ir.devices.cluster_file import (
    Count,
    DeviceTable,
    LinkTable,
    Positive,
    TomlTable,
    decode_tables,
    parse_any_cluster,
    parse_cluster,
)
from ..ir.devices.mixed import mixed_cluster
from ..ir.errors import UsageError

LINK_SOURCE = "bandwidth from the preset of the device; latency of NCCL's tuning tables"
NETWORK_SHARE = 0.85  # of its nominal rate that a network gives to collectives (assumed)
BYTES_PER_GIGABIT = 1e9 / 8


class LocalRates(NamedTuple):
    """Of a rank on this machine, until they are measured: flops in fp32 and bytes of memory a second,
    bytes a second and seconds a message between processes."""

    flops: float
    memory: float
    loopback: float
    latency: float


LOCAL = LocalRates(3.0e10, 8.0e9, 1.0e9, 1.5e-4)  # a core of a common server (assumed)


class PresetLink(LinkTable, frozen=True, kw_only=True):
    """Links that join up to `domain` devices or nodes."""

    domain: Count


class PresetFile(TomlTable, frozen=True, kw_only=True):
    """A shipped device, with its links: `scale_up` inside a node, `network` between nodes. `names`:
    what others call it besides the file's name, words in any order."""

    names: tuple[str, ...] = ()
    device: DeviceTable
    links: dict[Literal["scale_up", "network"], PresetLink]


class Preset(NamedTuple):
    """A shipped device, and its links by name."""

    device: Device
    links: dict[Literal["scale_up", "network"], PresetLink]


class CloudShape(TomlTable, frozen=True, kw_only=True):
    """A machine that a cloud rents: `devices` of a preset joined by its scale-up links, and the nominal
    Gbit/s that each of them has between machines."""

    device: str
    devices: Count
    gbit_per_device: Positive
    source: str

    @property
    def network_source(self) -> str:
        return f"{self.source}; {NETWORK_SHARE:.0%} of it (assumed)"


@cache
def cloud_shapes() -> dict[str, CloudShape]:
    """Machines of clouds by their short names."""
    path = resources.files(__package__ or "").joinpath("cloud_shapes.toml")
    return decode_tables(Path(str(path)), dict[str, CloudShape])


@cache
def presets() -> dict[str, Preset]:
    """Devices and their links by preset name."""
    by_name: dict[str, Preset] = {}
    for name, tables in _preset_files().items():
        links: dict[Literal["scale_up", "network"], PresetLink] = {
            key: replace(t, name=key, source=LINK_SOURCE) for key, t in tables.links.items()
        }
        by_name[name] = Preset(tables.device.device(name), links)
    return by_name


def preset_names() -> dict[str, tuple[str, ...]]:
    """What others call presets, besides their own names."""
    return {name: tables.names for name, tables in _preset_files().items()}


@cache
def _preset_files() -> dict[str, PresetFile]:
    folder = resources.files(__package__ or "").joinpath("hardware")
    files = sorted((Path(str(file)) for file in folder.iterdir()), key=str)
    return {f.stem: decode_tables(f, PresetFile) for f in files if f.suffix == ".toml"}


def load_cluster(spec: str) -> Cluster:
    """A cluster by name, `local:N`, or the path of a TOML file.

        4x8xh100         4 nodes of 8, factors from the outside in
        16x8xh100@400    400 Gbit/s (nominal) per device between nodes
        2xgb200x72       2 NVLink domains of 72
        16xp5            16 machines of a cloud

    A single factor is one flat axis: over the scale-up links if its domain is that large, else over
    the network. Raises UsageError for unknown names, FileError for broken files.
    """
    if spec.startswith("local:"):
        return local_cluster(spec)
    if spec.endswith(".toml"):
        return parse_cluster(Path(spec), preset_devices())
    name = _parse_name(spec)
    total = prod(name.sizes)
    if not 1 <= total <= MAX_DEVICES:
        raise UsageError(f"{spec!r} has {total} devices")
    return _named_cluster(spec, name)


class _ClusterName(NamedTuple):
    """A parsed name: group sizes from the outside in, a preset, and what it says of its links."""

    sizes: tuple[int, ...]
    kind: str
    domain: bool  # the innermost group is an NVLink domain by its name
    network: PresetLink


def _parse_name(spec: str) -> _ClusterName:
    match = re.fullmatch(r"((?:\d+x)*)([a-z][\w-]*)(?:@(\d+(?:\.\d+)?))?", spec.lower())
    if match is None:
        raise _unknown_cluster(spec, spec)
    factors, name, gbit = match.groups()
    outer = tuple(int(n) for n in factors.split("x") if n)
    kind, inner, shape = name, "", cloud_shapes().get(name)
    if shape is not None:
        kind, inner = shape.device, str(shape.devices)
    elif domain := re.fullmatch(r"(.+)x(\d+)", name) if name not in presets() else None:
        kind, inner = domain.groups()
    if kind not in presets():
        raise _unknown_cluster(spec, name)
    scale_up = presets()[kind].links["scale_up"]
    if inner and int(inner) > scale_up.domain:
        raise UsageError(f"{spec!r}: {scale_up.name} of {kind} joins up to {scale_up.domain}")
    sizes = (*outer, int(inner)) if inner else outer or (1,)
    network = presets()[kind].links["network"]
    if shape is not None:
        network = _at_rate(network, shape.gbit_per_device, shape.network_source)
    if gbit is not None:
        said = f"{gbit} Gbit/s by the cluster's name, {NETWORK_SHARE:.0%} of it (assumed)"
        network = _at_rate(network, float(gbit), f"{said}")
    return _ClusterName(sizes, kind, bool(inner), network)


def _at_rate(network: PresetLink, gbit: float, source: str) -> PresetLink:
    """The link with a nominal rate per device; raises UsageError for a rate of 0."""
    if not 0 < gbit <= 1e6:
        raise UsageError(f"@{gbit:g} is not a number of Gbit/s per device")
    gigabytes = gbit * NETWORK_SHARE * BYTES_PER_GIGABIT / 1e9
    return replace(network, gb_per_s=gigabytes, source=source)


def _unknown_cluster(spec: str, name: str) -> UsageError:
    known = [*presets(), *cloud_shapes()]
    text = spec.strip().lower()
    kind = name.strip().lower().lstrip("0123456789 *x")  # 8h100, 8*h100
    factors = text[: text.rfind(kind)].replace("*", "x").replace(" ", "").rstrip("x")
    longer = [k for k in known if kind and k.startswith(kind)]
    begun = longer and kind not in known  # a100, of which there are several
    shorter = [] if begun else [k for k in presets() if kind.startswith(k)]  # h200-sxm
    meant = ""
    if kind.startswith("local"):
        meant = " did you mean local:4?"
    elif shorter:
        longest = max(shorter, key=len)
        meant = f" did you mean {factors}x{longest}?" if factors else f" did you mean {longest}?"
    near = longer or difflib.get_close_matches(name, known, 3, 0.3)
    kinds = f"kinds: {', '.join(near)}" if near else "`plait clusters` lists the kinds"
    return UsageError(
        f"unknown cluster {spec!r};{meant} write factors and a kind, as in 8x8xh100, 16x8xh100@400, "
        f"gb200x72, local:4 or file.toml; {kinds}"
    )


def _named_cluster(spec: str, name: _ClusterName) -> Cluster:
    device, links = presets()[name.kind]
    scale_up, sizes = links["scale_up"], name.sizes
    inside = name.domain or sizes[-1] <= scale_up.domain
    kinds = [name.network] * (len(sizes) - 1) + [scale_up if inside else name.network]
    if "@" in spec and name.network not in kinds:
        raise UsageError(f"{spec!r} is one node: it has no network that could be that fast")
    levels = tuple(kind.link(size) for kind, size in zip(kinds, sizes, strict=True))
    return Cluster(spec, device, levels)


def load_any_cluster(spec: str) -> Cluster:
    """A cluster as `load_cluster` reads it, or several joined: `3xh100+5xa100-80`, over the slower
    of their networks, or a TOML file with `[[part]]` tables and the `[link]` between them."""
    if spec.endswith(".toml"):
        return parse_any_cluster(Path(spec), preset_devices())
    if "+" not in spec:
        return load_cluster(spec)
    parts = tuple(map(load_cluster, spec.split("+")))
    networks = [_parse_name(part.name).network for part in parts]
    link = Link(
        "network",
        len(parts),
        max(n.latency_us for n in networks) * 1e-6,
        min(n.gb_per_s for n in networks) * 1e9,
        source=LINK_SOURCE,
    )
    return mixed_cluster(spec, parts, link)


def preset_devices() -> dict[str, Device]:
    """The devices of all presets."""
    return {name: device for name, (device, _) in presets().items()}


def local_cluster(spec: str) -> Cluster:
    """`local:N`: N gloo ranks on this machine, with assumed rates (measure them to do better)."""
    count = spec.removeprefix("local:")
    if not count.isdecimal() or not 1 <= int(count) <= 4096:
        raise UsageError(f"{spec!r}: write local:N with a number of ranks")
    ranks = int(count)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = Device(
        kind="cpu",
        memory_bytes=physical // ranks,
        peak_flops={"float32": LOCAL.flops, "float64": LOCAL.flops / 2, "bfloat16": LOCAL.flops},
        achievable=0.8,
        memory_bandwidth_bytes_per_second=LOCAL.memory,
        launch_overhead_seconds=5e-6,
        runtime_overhead_bytes=300 << 20,
        source="assumed: one server core per rank, loopback",
        host_bandwidth_bytes_per_second=LOCAL.memory / 2,  # read and written
        host_copies_hide=False,
    )
    link = Link("loopback", ranks, LOCAL.latency, LOCAL.loopback, True, "assumed")
    return Cluster(spec, device, (link,))
