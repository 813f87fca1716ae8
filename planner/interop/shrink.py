"""Shrinks the decisions of a plan for many devices to a few: degree 2 along every axis.

pp=8,zero3=32,tp=4   20 layers keep, 12 recompute       on 1,024 devices
pp=2,tp=2            1 layer keep, 1 recompute          on 4
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import lcm, prod

import msgspec

from ...ir.plan.flat_shard import FULL
from ...ir.plan.memory_action import MemoryAction
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import FRACTION_ROLE, ROLES, SEQUENCE_FLAG, Strategy
from ..activations.ladder import CHUNKED_ACTIONS
from ..question.pins import Pin

DEGREE = 2  # along every axis
MOST_MICRO_BATCHES = 4
SAMPLES = 2  # of a micro-batch on every device
NUMBER = re.compile(r"\d+")

CallDecision = tuple[Strategy, MemoryAction]
LayerKind = tuple[str, str]  # path without numbers, function


class ShrunkPlan(msgspec.Struct, frozen=True):
    """Decisions of a plan, shrunk to `devices`.

    `strategies`: shrunk strategy by the plan's own; `decisions`: those of every kind of call, in
    call order; `layers`: the fewest layers of a stack in which every decision occurs.
    """

    devices: int
    strategies: dict[Strategy, Strategy]
    decisions: dict[LayerKind, tuple[CallDecision, ...]]
    layers: int
    micro_batches: int

    @property
    def global_batch(self) -> int:
        return SAMPLES * self.micro_batches * self.batch_degree

    @property
    def batch_degree(self) -> int:
        return lcm(*(strategy.batch_degree() for strategy in self.strategies.values()))

    @property
    def all_axes_devices(self) -> int:
        """Devices with which every axis of every strategy would remain."""
        return DEGREE ** max(sum(n > 1 for _, n in strategy.axes) for strategy in self.strategies)

    @property
    def model_degree(self) -> int:
        """The largest degree by which layers are split beside the batch."""
        return max(prod(n for _, n in strategy.model_axes) for strategy in self.strategies.values())

    def pins(self, calls: Sequence[tuple[str, str]]) -> tuple[Pin, ...]:
        """A pin for each call of the shrunk model, given as (path, function)."""
        members: dict[LayerKind, list[int]] = {}
        for i, call in enumerate(calls):
            members.setdefault(layer_kind(*call), []).append(i)
        decision_of_call: dict[int, CallDecision] = {}
        for kind, call_numbers in members.items():
            decision_of_call.update(
                zip(call_numbers, spread(self.decisions_of(kind), len(call_numbers)), strict=True)
            )
        seen: dict[str, int] = {}
        pins: list[Pin] = []
        for i, (_, function) in enumerate(calls):
            position = seen[function] = seen.get(function, -1) + 1
            pins.append(Pin(f"{function}.{position}", *decision_of_call[i]))
        return tuple(pins)

    def decisions_of(self, kind: LayerKind) -> tuple[CallDecision, ...]:
        """Decisions of calls of this kind; else of the same path; else the first that there are."""
        same_path = [
            decisions for known, decisions in self.decisions.items() if known[0] == kind[0]
        ]
        return self.decisions.get(kind) or next(
            iter(same_path), next(iter(self.decisions.values()))
        )


def shrink(plan: Plan, ranks: int) -> ShrunkPlan:
    """The shrunk form of a plan on the largest useful power of two of devices up to `ranks`."""
    strategies = shrink_strategies(plan.strategies, ranks)
    decisions: dict[LayerKind, list[CallDecision]] = {}
    layer_numbers: dict[LayerKind, list[int]] = {}
    for layers in plan.layers:
        if layers.batch_only:
            continue
        function = plan.shardings[layers.sharding].function
        decision = strategies[plan.strategy_of(layers)], shrink_memory_action(layers.memory)
        for path in plan.calls[layers.first : layers.last]:
            decisions.setdefault(layer_kind(path, function), []).append(decision)
            layer_numbers.setdefault(layer_kind(path, function), []).append(layer_number(path))
    devices = next(iter(strategies.values())).devices
    return ShrunkPlan(
        devices,
        strategies,
        {name: tuple(decisions_of_kind) for name, decisions_of_kind in decisions.items()},
        layers_needed(plan, decisions, layer_numbers),
        min(plan.micro_batches, MOST_MICRO_BATCHES),
    )


def layer_kind(path: str, function: str) -> LayerKind:
    """Kind of a call: its module path with numbers replaced by `*`, and its function."""
    return NUMBER.sub("*", path), function


def layer_number(path: str) -> int:
    """The number of a layer in its stack; what is in no stack is always there."""
    match = NUMBER.search(path)
    return int(match[0]) if match else 0


def shrink_memory_action(memory: MemoryAction) -> MemoryAction:
    """The action with the fewest chunks, for chunked ones."""
    return CHUNKED_ACTIONS[0] if memory.chunked else memory


def spread(decisions: Sequence[CallDecision], count: int) -> list[CallDecision]:
    """Decisions for `count` calls: their own if as many, else every distinct one in turn."""
    if count == len(decisions):
        return list(decisions)
    distinct = list(dict.fromkeys(decisions))
    return [distinct[i * len(distinct) // count] for i in range(count)]


def layers_needed(
    plan: Plan,
    decisions: dict[LayerKind, list[CallDecision]],
    layer_numbers: dict[LayerKind, list[int]],
) -> int:
    """Layers that every stack keeps, at least two.

    As many as it takes until every repeated kind has as many calls as decisions, and one more
    where the plan's stages differ in their number of layers.
    """
    counts = [DEGREE] + [
        sorted(layer_numbers[name])[len(set(decisions_of_kind)) - 1] + 1
        for name, decisions_of_kind in decisions.items()
        if len(decisions_of_kind) > 1
    ]
    per_stage = {
        sum("*" in NUMBER.sub("*", path) for path in plan.calls[first:last])
        for first, last in plan.model_chunks
    }
    depth = max(counts)
    return depth + 1 if len(per_stage) > 1 and depth % DEGREE == 0 else depth


def shrink_strategies(strategies: Iterable[Strategy], ranks: int) -> dict[Strategy, Strategy]:
    """Each strategy with axes of degree 2, as many as ranks allow, all for as many devices.

    Stages always stay; then roles that no earlier strategy covers, then those that split layers.
    """
    strategies = list(strategies)
    longest = max(sum(n > 1 for _, n in strategy.axes) for strategy in strategies)
    number = min(longest, max(ranks, 1).bit_length() - 1)
    covered: set[str] = set()
    shrunk: dict[Strategy, Strategy] = {}
    for strategy in strategies:
        shrunk[strategy] = small = _shrink_strategy(strategy, number, covered)
        covered.update(role for role, _ in small.axes)
    return shrunk


def _shrink_strategy(strategy: Strategy, axis_count: int, covered: set[str]) -> Strategy:
    """A strategy of `axis_count` axes of degree 2; with fewer axes, its widest is wider."""
    order = list(ROLES)
    wide_axes = [(role, n) for role, n in strategy.axes if n > 1]

    roles = [role for role, _ in wide_axes]
    small_roles = max(
        combinations(roles, min(axis_count, len(roles))),
        key=lambda some: (
            any(ROLES[role].stages for role in some),
            len(set(some) - covered),
            sum(map(order.index, some)),
        ),
    )
    sizes = dict.fromkeys(small_roles, DEGREE)
    if 0 < len(small_roles) < axis_count:
        widenable = [
            (n, role) for role, n in wide_axes if role in small_roles and not ROLES[role].stages
        ]
        sizes[max(widenable)[1] if widenable else small_roles[0]] *= DEGREE ** (
            axis_count - len(small_roles)
        )
    splits_operators = any(ROLES[role].operators for role in small_roles)
    axes = [
        (role, sizes.get(role, 1))
        for role, n in strategy.axes
        if role in sizes or ((role, n) == (SEQUENCE_FLAG, 1) and splits_operators)
    ]
    return Strategy(tuple(axes), strategy.fraction if FRACTION_ROLE in sizes else FULL)


def uncovered(plan: Plan, small: Plan) -> tuple[str, ...]:
    """Roles and memory actions of a plan that its shrunk plan does not have."""
    return tuple(
        name for name in dict.fromkeys(_features(plan)) if name not in set(_features(small))
    )


def _features(plan: Plan) -> list[str]:
    roles = [
        role
        for strategy in plan.strategies
        for role, n in strategy.axes
        if n > 1 or role == SEQUENCE_FLAG
    ]
    roles += [
        f"part of {FRACTION_ROLE}" for strategy in plan.strategies if strategy.fraction != FULL
    ]
    actions = [
        str(shrink_memory_action(layers.memory)) for layers in plan.layers if not layers.batch_only
    ]
    return [*roles, *actions]
