"""Named hardware: presets shipped as TOML, and the syntax of cluster names on the command line."""

from __future__ import annotations

import difflib
import os
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec.structs import replace

from ..ir.devices.cluster import MAX_DEVICES, Cluster, Device, Link
from ..ir.devices.cluster_file import (
    Count,
    DeviceTable,
    LinkTable,
    TomlTable,
    decode_tables,
    parse_any_cluster,
    parse_cluster,
)
from ..ir.devices.heterogeneous import HeterogeneousCluster
from ..ir.errors import UsageError

LOCAL_FLOPS = 3.0e10  # one core of a common server in fp32 (assumed)
LOCAL_BANDWIDTH = 8.0e9
LOOPBACK_BANDWIDTH = 1.0e9
LOOPBACK_LATENCY = 1.5e-4
LINK_SOURCE = "bandwidth from the preset of the device; latency assumed"


class PresetLink(LinkTable, frozen=True, kw_only=True):
    """Links that join up to `domain` devices or nodes."""

    domain: Count


class PresetFile(TomlTable, frozen=True, kw_only=True):
    """A shipped device, with its links: `scale_up` inside a node, `network` between nodes."""

    device: DeviceTable
    links: dict[Literal["scale_up", "network"], PresetLink]


class Preset(NamedTuple):
    """A shipped device, and its links by name."""

    device: Device
    links: dict[Literal["scale_up", "network"], PresetLink]


@cache
def presets() -> dict[str, Preset]:
    """Devices and their links by preset name."""
    by_name: dict[str, Preset] = {}
    for file in sorted(resources.files(__package__ or "").joinpath("hardware").iterdir(), key=str):
        if file.name.endswith(".toml"):
            tables = decode_tables(Path(str(file)), PresetFile)
            name = file.name.removesuffix(".toml")
            links: dict[Literal["scale_up", "network"], PresetLink] = {
                key: replace(t, name=key, source=LINK_SOURCE) for key, t in tables.links.items()
            }
            by_name[name] = Preset(tables.device.device(name), links)
    return by_name


def load_cluster(spec: str) -> Cluster:
    """A cluster by preset (`8xh100`, `4x8xa100-80`), `local:N`, or the path of a TOML file.

    Preset names read as factors from the outside in: `4x8xh100` is 4 nodes of 8. A single factor is
    one flat axis: over the scale-up links if its domain is that large, else over the network.
    Raises UsageError for unknown names, FileError for broken files.
    """
    if spec.startswith("local:"):
        return local_cluster(spec)
    if spec.endswith(".toml"):
        return parse_cluster(Path(spec), preset_devices())
    match = re.fullmatch(r"((?:\d+x)*)([a-z][\w-]*)", spec)
    if match is None or match[2] not in presets():
        near = difflib.get_close_matches(match[2] if match else spec, presets(), 3, 0.3)
        raise UsageError(
            f"unknown cluster {spec!r}; write factors and a kind, as in 8x8xh100, local:4 or "
            f"file.toml; kinds: {', '.join(near or presets())}"
        )
    sizes = [int(n) for n in match[1].split("x") if n] or [1]
    return _preset(spec, sizes, match[2])


def load_any_cluster(spec: str) -> Cluster | HeterogeneousCluster:
    """A cluster as `load_cluster` reads it, or several joined: `3xh100+5xa100-80`, over the slower
    of their networks, or a TOML file with `[[part]]` tables and the `[link]` between them."""
    if spec.endswith(".toml"):
        return parse_any_cluster(Path(spec), preset_devices())
    if "+" not in spec:
        return load_cluster(spec)
    parts = tuple(map(load_cluster, spec.split("+")))
    networks = [presets()[part.device.kind].links["network"] for part in parts]
    link = Link(
        "network",
        len(parts),
        max(n.latency_us for n in networks) * 1e-6,
        min(n.gb_per_s for n in networks) * 1e9,
        source=LINK_SOURCE,
    )
    return HeterogeneousCluster(spec, parts, link)


def preset_devices() -> dict[str, Device]:
    """The devices of all presets."""
    return {name: device for name, (device, _) in presets().items()}


def _preset(spec: str, sizes: list[int], kind: str) -> Cluster:
    device, links = presets()[kind]
    total = 1
    for size in sizes:
        total *= size
    if not 1 <= total <= MAX_DEVICES:
        raise UsageError(f"{spec!r} has {total} devices")
    domain = links["scale_up"].domain
    innermost = links["scale_up"] if sizes[-1] <= domain else links["network"]
    kinds = [links["network"]] * (len(sizes) - 1) + [innermost]
    levels = tuple(kind.link(size) for kind, size in zip(kinds, sizes, strict=True))
    return Cluster(spec, device, levels)


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
        peak_flops={"float32": LOCAL_FLOPS, "float64": LOCAL_FLOPS / 2, "bfloat16": LOCAL_FLOPS},
        achievable=0.8,
        memory_bandwidth_bytes_per_second=LOCAL_BANDWIDTH,
        launch_overhead_seconds=5e-6,
        runtime_overhead_bytes=300 << 20,
        source="assumed: one server core per rank, loopback",
        host_bandwidth_bytes_per_second=LOCAL_BANDWIDTH / 2,  # read and written
        host_copies_hide=False,
    )
    link = Link("loopback", ranks, LOOPBACK_LATENCY, LOOPBACK_BANDWIDTH, True, "assumed")
    return Cluster(spec, device, (link,))
