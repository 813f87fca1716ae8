"""From measurements to a cluster: measured curves, and the plain rates derived from them.

measurements ──▶ cluster with curves ──▶ TOML, every number with its source
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate

from ...ir.devices.cluster import Cluster, Device, Link
from ...ir.devices.curve import Curve
from ...ir.devices.measured import MachineCosts, MeasuredCost

RUNTIME_BYTES = {"cpu": 300 << 20, "cuda": 1200 << 20}  # libraries and contexts, as of presets
BANDWIDTH_CURVE = "pointwise"  # the curve that gives the memory bandwidth
MIN_BYTES_PER_SECOND = 1e3


def cluster_of(machine: MachineCosts, name: str) -> Cluster:
    """Cluster of one level of `machine.ranks` devices, measured with all ranks running at once."""
    source = (
        f"measured with {machine.ranks} ranks at work on {machine.processors} processors of "
        f"{machine.name}, torch {machine.torch_version}"
    )
    curves = tuple(_curves((c for c in machine.costs if not c.ranks), source))
    sent = tuple(_curves((c for c in machine.costs if c.ranks), source))
    device = Device(
        kind=machine.device,
        memory_bytes=machine.memory_bytes,
        peak_flops=_peaks(curves),
        achievable=1.0,
        memory_bandwidth_bytes_per_second=_rate(curves, BANDWIDTH_CURVE),
        launch_overhead_seconds=min(c.seconds[0] for c in curves),
        runtime_overhead_bytes=RUNTIME_BYTES[machine.device],
        source=source,
        sources={
            "achievable": "derived: rates are measured ones",
            "sustained": "measured rates hold",
            "runtime_gb": "as of presets: libraries and contexts",
        },
        curves=curves,
        ranks_per_processor=ranks_per_processor(machine),
        host_copies_hide=machine.device != "cpu",
    )
    latency, rate = _alpha_beta(sent, machine.ranks)
    whole_reductions = machine.device == "cpu"
    link = Link("loopback", machine.ranks, latency, rate, whole_reductions, source, sent)
    return Cluster(name, device, (link,))


def ranks_per_processor(machine: MachineCosts) -> float:
    """Ranks per processor; a GPU serves one."""
    return max(1.0, machine.ranks / machine.processors) if machine.device == "cpu" else 1.0


def _curves(costs: Iterable[MeasuredCost], source: str) -> Iterator[Curve]:
    """One curve per name, dtype and group size. Disturbances only make measurements longer, so a
    call takes at most the seconds of any larger one."""
    points: dict[tuple[str, str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for cost in costs:
        key = (cost.name, cost.by, cost.dtype, cost.ranks)
        points[key].append((cost.amount, cost.seconds))
    for (name, by, dtype, ranks), measured in points.items():
        amounts, seconds = zip(*sorted(measured), strict=True)
        least = tuple(accumulate(reversed(seconds), min))[::-1]
        yield Curve(name, by, amounts, least, dtype, ranks, source)


def _peaks(curves: Iterable[Curve]) -> dict[str, float]:
    """flop/s of the fastest product of each type."""
    return {
        c.dtype: max(a / s for a, s in zip(c.amounts, c.seconds, strict=True))
        for c in curves
        if c.name == "gemm"
    }


def _rate(curves: Iterable[Curve], name: str) -> float:
    """byte/s of the largest call."""
    curve = next(c for c in curves if c.name == name)
    return curve.amounts[-1] / curve.seconds[-1]


def _alpha_beta(curves: tuple[Curve, ...], ranks: int) -> tuple[float, float]:
    """Seconds per round and byte/s of an all-reduce over all ranks; sizes of groups that were not
    measured follow from them."""
    curve = next((c for c in curves if c.name == "all_reduce" and c.ranks == ranks), None)
    if curve is None:
        return 1e-9, 1e12  # a rank alone sends nothing
    rounds, part = 2 * (ranks - 1), 2 * (ranks - 1) / ranks
    span = curve.seconds[-1] - curve.seconds[0]
    moved = part * (curve.amounts[-1] - curve.amounts[0])
    return curve.seconds[0] / rounds, max(moved / max(span, 1e-12), MIN_BYTES_PER_SECOND)


def cluster_toml(cluster: Cluster) -> str:
    """The cluster as TOML, which `--cluster FILE.toml` reads back."""
    device = cluster.device
    lines = [
        f"# {cluster}",
        f"name = {_toml_string(cluster.name)}",
        "",
        "[device]",
        f"kind = {_toml_string(device.kind)}",
        f"memory_gb = {device.memory_bytes / 1e9:.6g}",
        f"memory_gb_per_s = {device.memory_bandwidth_bytes_per_second / 1e9:.6g}",
        f"achievable = {device.achievable:.6g}",
        f"ranks_per_processor = {device.ranks_per_processor:.6g}",
        f"sustained = {device.sustained:.6g}",
        f"launch_us = {device.launch_overhead_seconds * 1e6:.6g}",
        f"runtime_gb = {device.runtime_overhead_bytes / 1e9:.6g}",
        f"host_gb_per_s = {device.host_bandwidth_bytes_per_second / 1e9:.6g}",
        f"host_memory_gb = {device.host_memory_bytes / 1e9:.6g}",
        f"host_copies_hide = {str(device.host_copies_hide).lower()}",
        f"source = {_toml_string(device.source)}",
        "",
        "[device.sources]",
        *(f"{key} = {_toml_string(text)}" for key, text in sorted(device.sources.items())),
        "",
        "[device.tflops]",
        *(f"{dtype} = {rate / 1e12:.6g}" for dtype, rate in device.peak_flops.items()),
    ]
    if device.achievable_of:
        shares = (f"{dtype} = {share:.6g}" for dtype, share in device.achievable_of.items())
        lines += ["", "[device.achievable_of]", *shares]
    for curve in device.curves:
        lines += ["", "[[device.curve]]", *_curve_toml(curve)]
    for link in cluster.levels:
        lines += [
            "",
            "[[level]]",
            f"name = {_toml_string(link.name)}",
            f"size = {link.size}",
            f"latency_us = {link.latency_seconds * 1e6:.6g}",
            f"gb_per_s = {link.bandwidth_bytes_per_second / 1e9:.6g}",
            f"whole_reductions = {str(link.whole_reductions).lower()}",
            f"source = {_toml_string(link.source)}",
        ]
        for curve in link.curves:
            lines += ["", "[[level.curve]]", *_curve_toml(curve)]
    return "\n".join(lines) + "\n"


def _curve_toml(curve: Curve) -> Iterator[str]:
    yield f"name = {_toml_string(curve.name)}"
    yield f"by = {_toml_string(curve.by)}"
    if curve.ranks:
        yield f"ranks = {curve.ranks}"
    yield f"dtype = {_toml_string(curve.dtype)}"
    yield f"amounts = [{', '.join(f'{x:.6g}' for x in curve.amounts)}]"
    yield f"us = [{', '.join(f'{x * 1e6:.6g}' for x in curve.seconds)}]"
    yield f"source = {_toml_string(curve.source)}"


def _toml_string(text: str) -> str:
    """A TOML string."""
    safe = "".join(c if c.isprintable() else " " for c in text)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'
