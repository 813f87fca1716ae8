"""Baselines under the same cost model on the same cluster: one strategy for all layers.

    ddp        replicas (Li et al. 2020)                  fsdp, zero1-3   sharded over all devices
    hsdp       sharded inside a node, replicas between    megatron        tensor × pipeline × data

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
from ...ir.plan.strategy import ROLES, SEQUENCE_FLAG, Strategy, parse_strategy
from ...ir.unknown_name import unknown_name
from ..question.strategy_space import divisors
from .driver import SearchSpace
from .to_plan import assemble

UNIFORM_ROLES = {"ddp": "dp", "fsdp": "zero3", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3"}
NAMES = (*UNIFORM_ROLES, "hsdp", "megatron", "word")
SETTING = re.compile(r"(sp|[a-z]+\d*=\d+)")


class Baseline(NamedTuple):
    """A name as the user wrote it, and the strategies that its users choose from."""

    name: str
    strategies: tuple[Strategy, ...]


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
    return tuple(Baseline(name, tuple(baseline_strategies(name, cluster))) for name in names)


def baseline_strategies(name: str, cluster: Cluster) -> Iterator[Strategy]:
    """The strategies of one baseline."""
    kind, _, settings = name.partition(":")
    devices, node = cluster.devices, cluster.levels[-1].size
    if kind == "word":
        yield check_devices(parse_strategy(settings), cluster)
    elif kind == "megatron":
        yield from megatron(dict(parse_strategy(settings).axes), devices, node)
    elif settings:
        raise UsageError(f"baseline {name!r}: only megatron and word take settings")
    elif kind in UNIFORM_ROLES:
        yield Strategy(((UNIFORM_ROLES[kind], devices),))
    elif kind == "hsdp":
        yield Strategy(
            tuple((r, n) for r, n in (("dp", devices // node), ("zero3", node)) if n > 1)
        )
    else:
        raise UsageError(unknown_name("baseline", kind, NAMES))


def check_devices(strategy: Strategy, cluster: Cluster) -> Strategy:
    """The strategy, if it is for all devices of the cluster; raises UsageError otherwise."""
    if strategy.devices != cluster.devices:
        raise UsageError(
            f"{strategy} is for {strategy.devices} devices, the cluster has {cluster.devices}"
        )
    return strategy


def megatron(settings: dict[str, int], devices: int, node: int) -> Iterator[Strategy]:
    """Tensor axes inside a node, stages, and replicas (Narayanan et al. 2021, Korthikanti et al.
    2022).

    With and without sequence parallelism, with and without a sharded optimizer.
    """
    unknown = set(settings) - {"tp", "pp", "dp", SEQUENCE_FLAG}
    if unknown:
        raise UsageError(
            f"megatron takes tp, pp, dp and {SEQUENCE_FLAG}, not {', '.join(sorted(unknown))}"
        )
    tensor = [settings["tp"]] if "tp" in settings else [n for n in divisors(devices) if n <= node]
    for tp in tensor:
        stages = [settings["pp"]] if "pp" in settings else divisors(devices // tp)
        for pp in stages:
            replicas, remainder = divmod(devices, tp * pp)
            if remainder or replicas != settings.get("dp", replicas):
                continue
            for role in ("dp", "zero1"):
                sizes = (("pp", pp), (role, replicas), ("tp", tp))
                axes = tuple((r, n) for r, n in sizes if n > 1)
                if SEQUENCE_FLAG not in settings:
                    yield Strategy(axes)
                if tp > 1:
                    yield Strategy((*axes, (SEQUENCE_FLAG, 1)))


def baseline_plan(space: SearchSpace, baseline: Baseline) -> Plan | None:
    """The fastest plan of a baseline that fits, else the one that needs least memory.

    None where the model cannot be split so.
    """
    unrestricted = space.with_options(pins=(), micro_batches=None, roles=tuple(ROLES))
    for strategy in baseline.strategies:
        if strategy.stages <= unrestricted.stages and not space.engine.refusal(strategy):
            unrestricted.candidates += unrestricted.uniform_candidates(strategy)
    unrestricted.update_best(unrestricted.candidates)
    unrestricted.candidates = unrestricted.add_schedules(unrestricted.candidates)
    if not unrestricted.candidates:
        return None
    fitting = unrestricted.fitting()
    smallest = min(unrestricted.candidates, key=lambda c: (c.peak_bytes, c.step_seconds))
    return assemble(unrestricted, min(fitting, key=unrestricted.sort_key) if fitting else smallest)
