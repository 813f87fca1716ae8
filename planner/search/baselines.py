"""What others would do on the same cluster, under the same cost model: one strategy for all layers.

    ddp        replicas (Li et al. 2020)                  fsdp, zero1-3   sharded over all devices
    hsdp       sharded inside a node, replicas between    megatron        tensor × pipeline × replicas

Each is given its best number of micro-batches and the better of keeping and recomputing
activations, so what a plan gains over it is not for want of tuning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import FLAG, ROLES, Strategy, parse_strategy
from ..strategy_space import divisors
from .driver import Space
from .to_plan import assemble

EVERYWHERE = {"ddp": "dp", "fsdp": "zero3", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3"}
NAMES = (*EVERYWHERE, "hsdp", "megatron", "word")
SETTING = re.compile(r"(sp|[a-z]+\d*=\d+)")


class Baseline(NamedTuple):
    """A name as it was asked for, and the strategies that its users choose from."""

    name: str
    words: tuple[Strategy, ...]


def parse_baselines(text: str, cluster: Cluster) -> tuple[Baseline, ...]:
    """`ddp,fsdp,megatron:tp=8,pp=4,word:dp=2,tp=2`: settings belong to the last name before them.

    Raises UsageError for names that are not known and words for other numbers of devices.
    """
    names: list[str] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        if names and ":" in names[-1] and SETTING.fullmatch(part):
            names[-1] += f",{part}"
        else:
            names.append(part)
    if not names:
        raise UsageError(f"no baseline in {text!r}; known: {', '.join(NAMES)}")
    return tuple(Baseline(name, tuple(words(name, cluster))) for name in names)


def words(name: str, cluster: Cluster) -> Iterator[Strategy]:
    """The strategies of one baseline."""
    kind, _, settings = name.partition(":")
    devices, node = cluster.devices, cluster.levels[-1].size
    if kind == "word":
        yield fitting(parse_strategy(settings), cluster)
    elif kind == "megatron":
        yield from megatron(dict(parse_strategy(settings).axes), devices, node)
    elif settings:
        raise UsageError(f"baseline {name!r}: only megatron and word take settings")
    elif kind in EVERYWHERE:
        yield Strategy(((EVERYWHERE[kind], devices),))
    elif kind == "hsdp":
        yield Strategy(
            tuple((r, n) for r, n in (("dp", devices // node), ("zero3", node)) if n > 1)
        )
    else:
        raise UsageError(f"unknown baseline {kind!r}; known: {', '.join(NAMES)}")


def fitting(strategy: Strategy, cluster: Cluster) -> Strategy:
    if strategy.devices != cluster.devices:
        raise UsageError(
            f"{strategy} is for {strategy.devices} devices, the cluster has {cluster.devices}"
        )
    return strategy


def megatron(given: dict[str, int], devices: int, node: int) -> Iterator[Strategy]:
    """Tensor axes inside a node, with activations between split by tokens or not; stages; replicas,
    with the optimizer sharded or not (Narayanan et al. 2021, Korthikanti et al. 2022)."""
    unknown = set(given) - {"tp", "pp", "dp", FLAG}
    if unknown:
        raise UsageError(f"megatron takes tp, pp, dp and {FLAG}, not {', '.join(sorted(unknown))}")
    tensor = [given["tp"]] if "tp" in given else [n for n in divisors(devices) if n <= node]
    for tp in tensor:
        stages = [given["pp"]] if "pp" in given else divisors(devices // tp)
        for pp in stages:
            left, over = divmod(devices, tp * pp)
            if over or left != given.get("dp", left):
                continue
            for role in ("dp", "zero1"):
                sizes = (("pp", pp), (role, left), ("tp", tp))
                axes = tuple((r, n) for r, n in sizes if n > 1)
                if FLAG not in given:
                    yield Strategy(axes)
                if tp > 1:
                    yield Strategy((*axes, (FLAG, 1)))


def rival(space: Space, baseline: Baseline) -> Plan | None:
    """The fastest plan of a baseline that fits, else the one that needs least memory; None where the
    model cannot be split so."""
    other = space.again(pins=(), micro_batches=None, roles=tuple(ROLES))
    for strategy in baseline.words:
        if strategy.stages <= other.stages:
            other.found += other.candidates(strategy)
    other.met(other.found)
    other.found = other.interleave(other.found)
    if not other.found:
        return None
    fits = other.fitting()
    least = min(other.found, key=lambda c: (c.peak_bytes, c.step_seconds))
    return assemble(other, min(fits, key=other.order) if fits else least)
