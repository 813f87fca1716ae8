"""One term of a prediction: its formula, its value, and where the numbers in it come from.

A term with parts is their sum. A term without is its formula at its symbols: constants of the
device and its links, explained by `legend`, and amounts of the plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec.structs import replace

from ...ir.devices.cluster import DEFAULT_SOURCE, Cluster, Device, Link
from ...ir.plan.plan import Optimizer
from ...ir.plan.workload import Collectives, Kernels, StageBytes
from ..communication.collective import CommGroup, Leg, LinkRates, collective_legs, leg_seconds
from ..communication.data_parallel import BatchAxes
from ..communication.step_bytes import updated_bytes
from ..memory.host_states import host_step, host_stream_seconds
from ..operators.roofline import (
    BANDWIDTH_EFFICIENCY,
    EFFICIENCY,
    RAMP_SECONDS,
    exposed_host_seconds,
    op_seconds,
    stream_seconds,
)
from ..quantity import Quantity, amount

ASSUMED = "assumed for this kind of work (cost_model/operators/roofline.py)"
TABLED = "measured on H100: XLA's table of products (cost_model/operators/roofline.py)"
ROOFLINE = "derived: work counted, at the device's rates"
STREAM = "derived: bytes counted, at the memory bandwidth"
HOST = "derived: bytes counted, at the host's bandwidth"
ALPHA_BETA = "derived: bytes counted, at the link's latency and bandwidth"
# fmt: off
AMOUNTS = {
    "n": "times per step", "F": "floating-point operations", "N": "bytes of the full tensor",
    "B": "bytes read and written", "p": "ranks of the group", "m": "micro-batches per step",
    "u": "seconds of pipeline fill and drain around the slowest stage, per micro-batch",
    "b_w": "seconds of a micro-batch in that stage", "b": "and in the busiest one",
    "g": "seconds between micro-batches, of the slowest stage or loop of stages",
    "w_c": "seconds to transfer compressed messages", "k_c": "seconds to encode and decode",
    "t_s": "seconds saved while waiting ranks leave shared processors to others",
    "h": "seconds in which an exchange and compute run beside each other, as they are saved",
    "l": "seconds of a call in which the device waits for the host's launches",
    "l_e": "seconds of a call in which it waits while the host counts tokens of experts",
    "y": "seconds by which compute takes longer beside an exchange",
    "t_b": "seconds of work beside a copy to or from host memory",
    "t": "seconds of resharding per micro-batch, forward and backward",
}
# fmt: on


class Term(msgspec.Struct, frozen=True):
    """`value` in `unit`: "s" or "B". `source`: derived, measured or assumed, and from what."""

    name: str
    value: float
    unit: str
    formula: str
    source: str = "derived"
    symbols: Mapping[str, float] = {}
    parts: tuple[Term, ...] = ()

    def leaves(self) -> Iterator[Term]:
        """The terms without parts below, or itself."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()


class Symbol(msgspec.Struct, frozen=True):
    """Meaning of a symbol; `value` where it is the same in every term."""

    name: str
    about: str
    value: float | None = None
    source: str = ""


def total(name: str, parts: Iterable[Term], unit: str = "s") -> Term:
    """Sum of the nonzero parts."""
    nonzero = tuple(part for part in parts if part.value)
    names = [part.name for part in nonzero]
    formula = " + ".join(names) if len(set(names)) == len(names) else "sum over sizes"
    return Term(
        name, sum(part.value for part in nonzero), unit, formula or "0", "derived", {}, nonzero
    )


def codec_term(quantity: Quantity, device: Device) -> Term:
    """Seconds of the kernels that encode and decode messages, and what those are written in."""
    source = "derived: bytes and instructions of the program's kernels, at the device's rates"
    return priced_term(f"codec, {device.kernel_language}", quantity, source)


def priced_term(name: str, quantity: Quantity, source: str, unit: str = "s") -> Term:
    """The term of a priced quantity; `source` where no measurement says more."""
    return Term(
        name, quantity.value, unit, quantity.formula, quantity.source or source, quantity.amounts
    )


def kernels_term(name: str, members: Iterable[Kernels], times: int, device: Device) -> Term:
    """Operators of one kind, each run `times` times."""
    return total(name, [kernel_term(kernels, times, device) for kernels in members])


def kernel_term(kernels: Kernels, times: int, device: Device) -> Term:
    """Equal operators: the roofline, or a measured curve."""
    work, dtype, kind = kernels.work, kernels.dtype, kernels.kind
    amounts = amount("F", kernels.flops), amount("B", kernels.moved_bytes)
    one = op_seconds(work, *amounts, dtype, device, kind)
    name = f"{kind or work} {dtype}"
    return priced_term(name, amount("n", kernels.count * times) * one, ROOFLINE)


def sent_term(sent: Collectives, times: int, cluster: Cluster) -> Term:
    """Equal collectives."""
    group = CommGroup(sent.size, sent.stride)
    legs = collective_legs(sent.kind, sent.amount_bytes, group, cluster)
    return legs_term(f"{sent.kind} over {sent.axis}", legs, sent.count * times, cluster)


def legs_term(name: str, legs: Iterable[Leg], times: int, cluster: Cluster) -> Term:
    """A collective's parts, one after the other, `times` times."""
    parts = [leg_term(leg, times, cluster) for leg in legs]
    if len(parts) == 1:
        return replace(parts[0], name=name)
    return total(name, parts)


def leg_term(leg: Leg, times: int, cluster: Cluster) -> Term:
    """A collective over one kind of link: alpha-beta, or a measured curve."""
    link, name = leg.link, link_name(leg.link, cluster)
    rates = LinkRates(
        Quantity(link.latency_seconds, f"alpha_{name}"),
        Quantity(link.bandwidth_bytes_per_second, f"beta_{name}"),
    )
    one = leg_seconds(leg, amount("N", leg.amount), amount("p", leg.size), rates)
    return priced_term(f"{leg.kind} on {link.name}", amount("n", times) * one, ALPHA_BETA)


def stream_term(name: str, kind: str, moved: float, times: int, device: Device) -> Term:
    """Bytes streamed through memory."""
    one = stream_seconds(kind, amount("B", moved), device)
    return priced_term(name, amount("n", times) * one, STREAM)


def host_term(copied: float, beside: float, times: int, device: Device) -> Term:
    """Exposed copies to or from host memory, beside `beside` seconds of compute."""
    work = amount("t_b", beside / times if times else 0.0)
    one = exposed_host_seconds(amount("B", copied), work, device)
    return priced_term("host memory", amount("n", times) * one, HOST)


def optimizer_terms(
    weights: StageBytes, axes: BatchAxes, optimizer: Optimizer, device: Device
) -> Iterator[Term]:
    """The optimizer's step, with the copies to a host that it steps on and back."""
    if not optimizer.on_host:
        updated = updated_bytes(axes, weights, optimizer)
        yield stream_term("optimizer", optimizer.name, updated, 1, device)
        return
    step = host_step(weights, axes, optimizer)
    on_host = host_stream_seconds(optimizer.name, amount("B", step.streamed), device)
    stepping = priced_term("on the host", on_host, HOST)
    yield total("optimizer", [stepping, host_term(step.copied, 0.0, 1, device)])


def legend(cluster: Cluster) -> tuple[Symbol, ...]:
    """Every symbol that time formulas use."""
    device = cluster.device
    source = device.source_of
    rates = [
        Symbol(f"P_{dtype}", f"flop/s of products of {dtype}", device.peak(dtype), source("tflops"))
        for dtype in device.peak_flops
    ]
    parts = [
        Symbol(
            f"r_{work}",
            f"fraction of that which {work} reaches",
            rate,
            ASSUMED if work == "convolution" else TABLED,
        )
        for work, rate in EFFICIENCY.items()
    ]
    links = {s.name: s for link in cluster.levels for s in _link(link, link_name(link, cluster))}
    curves = (*device.curves, *(c for link in cluster.levels for c in link.curves))
    measured = sorted({curve.name for curve in curves})
    return (
        *rates,
        Symbol(
            "a",
            "part of the peak that the largest products reach",
            device.achievable,
            source("achievable"),
        ),
        *(
            Symbol(f"a_{dtype}", f"and those of {dtype}", share, source("achievable_of"))
            for dtype, share in device.achievable_of.items()
        ),
        Symbol("s", "part of that which long runs keep up", device.sustained, source("sustained")),
        *parts,
        Symbol("t_r", "seconds of ramp-up of a product", RAMP_SECONDS, TABLED),
        Symbol(
            "W",
            "memory bandwidth, byte/s",
            device.memory_bandwidth_bytes_per_second,
            source("memory_gb_per_s"),
        ),
        Symbol("w", "part of it that kernels reach", BANDWIDTH_EFFICIENCY, ASSUMED),
        Symbol(
            "W_h",
            "bandwidth to and from host memory, byte/s",
            device.host_bandwidth_bytes_per_second,
            source("host_gb_per_s"),
        ),
        Symbol(
            "t_l", "seconds to launch a kernel", device.launch_overhead_seconds, source("launch_us")
        ),
        *links.values(),
        *(Symbol(f"t_{name}", "seconds of one, read off a measured curve") for name in measured),
        *(Symbol(name, about) for name, about in AMOUNTS.items()),
    )


def _link(link: Link, name: str) -> tuple[Symbol, Symbol]:
    rate, source = link.bandwidth_bytes_per_second, link.source or DEFAULT_SOURCE
    return (
        Symbol(
            f"alpha_{name}", f"seconds of a message ({link.name})", link.latency_seconds, source
        ),
        Symbol(f"beta_{name}", f"byte/s of a device, one way ({link.name})", rate, source),
    )


def link_name(link: Link, cluster: Cluster) -> str:
    """A name for symbols: the link's, and its level where levels of one name differ."""
    name = re.sub(r"\W", "_", link.name)
    same_name = [x for x in cluster.levels if re.sub(r"\W", "_", x.name) == name]
    rates = {(x.latency_seconds, x.bandwidth_bytes_per_second, x.source) for x in same_name}
    return name if len(rates) == 1 else f"{name}_{cluster.levels.index(link)}"
