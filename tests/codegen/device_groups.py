"""Plans whose stages are device groups, made by hand: six shapes for four ranks."""

from __future__ import annotations

from typing import NamedTuple

from plait.cost_model.hardware import load_any_cluster
from plait.ir.model.model import Model
from plait.ir.plan.groups.device_group import DeviceGroup, deal
from plait.ir.plan.memory_action import KEEP, RECOMPUTE
from plait.ir.plan.plan import Plan
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions
from plait.planner.heterogeneous.group_prices import GroupChoice, GroupPrices
from plait.planner.heterogeneous.to_plan import assemble_groups
from plait.planner.question.training import optimizer_states

MICRO_BATCHES = 6


class Row(NamedTuple):
    """A device group: its part of the cluster, strategy, calls in tenths of all, micro-batches."""

    part: int
    strategy: str
    calls: tuple[int, int]
    micro_batches: tuple[int, ...]


ALL = tuple(range(MICRO_BATCHES))
MOST, FEW = deal([4, 2])
SHAPES: dict[str, tuple[Row, ...]] = {
    "degrees differ by stage": (Row(0, "dp=2", (0, 5), ALL), Row(1, "tp=2", (5, 10), ALL)),
    "two replicas feed one": (
        Row(0, "dp=1", (0, 5), MOST),
        Row(1, "dp=1", (0, 5), FEW),
        Row(0, "tp=2", (5, 10), ALL),
    ),
    "one feeds two": (
        Row(0, "zero1=2", (0, 3), ALL),
        Row(0, "dp=1", (3, 10), MOST),
        Row(1, "dp=1", (3, 10), FEW),
    ),
    "pipelines of other lengths": (
        Row(0, "zero1=2", (0, 10), ALL[:4]),
        Row(1, "dp=1", (0, 4), ALL[4:]),
        Row(1, "dp=1", (4, 10), ALL[4:]),
    ),
    "replicas shard differently": (
        Row(0, "tp=2", (0, 10), ALL[:4]),
        Row(1, "zero3=2", (0, 10), ALL[4:]),
    ),
    "stages that do not line up": (
        Row(0, "dp=1", (0, 7), MOST),
        Row(0, "dp=1", (7, 10), MOST),
        Row(1, "dp=1", (0, 3), FEW),
        Row(1, "dp=1", (3, 10), FEW),
    ),
}


def grouped_plan(model: Model, rows: tuple[Row, ...]) -> Plan:
    """The plan of these rows on four devices of each of two kinds."""
    options, calls, used = PlanOptions(), len(model.calls), [0, 0]
    cluster = load_any_cluster("4xh100+4xa100-40")
    states = optimizer_states(options, 8)
    prices = GroupPrices(model, cluster, states, options.roles, None)
    choices: list[GroupChoice] = []
    for number, row in enumerate(rows):
        strategy = parse_strategy(row.strategy)
        group = DeviceGroup(row.part, used[row.part], strategy.devices, row.micro_batches)
        used[row.part] += strategy.devices
        span = row.calls[0] * calls // 10, row.calls[1] * calls // 10
        memory = KEEP if number % 2 else RECOMPUTE
        choices.append(GroupChoice(group, strategy, memory, span))
    return assemble_groups(prices, choices, options, model.batch // MICRO_BATCHES)
