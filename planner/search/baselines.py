"""Baselines under the same cost model on the same cluster: one strategy for all layers.

    ddp        replicas (Li et al. 2020)                  fsdp, zero1-3   sharded over all devices
    hsdp:16    sharded inside a node (or 16 devices), replicas between them
    megatron   tensor × pipeline × data ranks (Narayanan et al. 2021, Korthikanti et al. 2022)
    torchtitan, deepspeed      their settings: `engine_baselines`

Each gets its best number of micro-batches and the better of keeping and recomputing
activations, so a plan's gain over it is not for want of tuning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import SEARCHED_ROLES, Strategy, parse_strategy
from ...ir.unknown_name import unknown_name
from ..question.ranking import smallest
from .driver import SearchSpace
from .engine_baselines import ENGINE_BASELINES, engine_strategies, model_chunks_of, parse_settings
from .to_plan import assemble

UNIFORM_ROLES = {"ddp": "dp", "fsdp": "zero3", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3"}
NAMES = (*UNIFORM_ROLES, "hsdp", *ENGINE_BASELINES, "word")
SETTING = re.compile(r"(sp|[a-z]+\d*=\d+|order=[a-z-]+)")


class Baseline(NamedTuple):
    """A name as the user wrote it, and the strategies that its users choose from; model chunks per
    stage, or None where they are open."""

    name: str
    strategies: tuple[Strategy, ...]
    model_chunks: int | None = None


def parse_baselines(text: str, cluster: Cluster) -> tuple[Baseline, ...]:
    """Parse `ddp,fsdp,megatron:tp=8,pp=4,word:dp=2,tp=2`: settings belong to the name before them.

    Raises UsageError for unknown names and strategies for another number of devices.
    """
    names: list[str] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        if names and ":" in names[-1] and SETTING.fullmatch(part):
            names[-1] += f",{part}"
        else:
            names.append(part)
    if not names:
        raise UsageError(f"no baseline in {text!r}; known: {', '.join(NAMES)}")
    return tuple(baseline(name, cluster) for name in names)


def baseline(name: str, cluster: Cluster) -> Baseline:
    """One baseline with its settings. Raises UsageError."""
    kind, _, settings = name.partition(":")
    chunks = model_chunks_of(parse_settings(kind, settings)) if kind in ENGINE_BASELINES else None
    return Baseline(name, tuple(baseline_strategies(name, cluster)), chunks)


def baseline_strategies(name: str, cluster: Cluster) -> Iterator[Strategy]:
    """The strategies of one baseline."""
    kind, _, settings = name.partition(":")
    devices, node = cluster.devices, cluster.levels[-1].size
    if kind == "word":
        yield check_devices(parse_strategy(settings), cluster)
    elif kind in ENGINE_BASELINES:
        yield from engine_strategies(kind, parse_settings(kind, settings), devices, node)
    elif kind == "hsdp":
        yield hybrid(devices, settings, node)
    elif settings:
        raise UsageError(
            f"baseline {name!r}: only hsdp, {', '.join(ENGINE_BASELINES)} and word take settings"
        )
    elif kind in UNIFORM_ROLES:
        yield Strategy(((UNIFORM_ROLES[kind], devices),))
    else:
        raise UsageError(unknown_name("baseline", kind, NAMES))


def hybrid(devices: int, settings: str, node: int) -> Strategy:
    """Shards over a node or so many devices, replicas between them."""
    shards = int(settings) if settings.isdigit() else node
    if (settings and not settings.isdigit()) or not shards or devices % shards:
        raise UsageError(f"hsdp:{settings} is no group of the {devices} devices, as in hsdp:{node}")
    return Strategy(
        tuple((r, n) for r, n in (("dp", devices // shards), ("zero3", shards)) if n > 1)
    )


def check_devices(strategy: Strategy, cluster: Cluster) -> Strategy:
    """The strategy, if it is for all devices of the cluster; raises UsageError otherwise."""
    if strategy.devices != cluster.devices:
        raise UsageError(
            f"{strategy} is for {strategy.devices} devices, the cluster has {cluster.devices}"
        )
    return strategy


def baseline_plan(space: SearchSpace, baseline: Baseline) -> Plan | None:
    """The fastest plan of a baseline that fits, else the one that needs least memory.

    None where the model cannot be split so.
    """
    unrestricted = space.with_options(pins=(), micro_batches=None, roles=SEARCHED_ROLES)
    for strategy in baseline.strategies:
        if strategy.stages <= unrestricted.stages and not space.refusal(strategy):
            unrestricted.candidates += unrestricted.uniform_candidates(strategy)
    unrestricted.update_best(unrestricted.candidates)
    unrestricted.candidates = [
        candidate
        for candidate in unrestricted.add_schedules(unrestricted.candidates)
        if baseline.model_chunks in (None, candidate.assignment.model_chunks)
    ]
    if not unrestricted.candidates:
        return None
    return assemble(unrestricted, unrestricted.best or smallest(unrestricted.candidates))
