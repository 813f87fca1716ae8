"""Prices of stages on device groups of a heterogeneous cluster, under their fastest strategies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from math import inf, prod
from typing import NamedTuple

from msgspec.structs import replace

from ...cost_model.execution_model import execution_of
from ...cost_model.memory.in_flight import InFlight
from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster
from ...ir.devices.mixed import memory_limit, sub_cluster
from ...ir.lowering.cast import narrowest_item_bytes
from ...ir.model.model import Model
from ...ir.plan.groups.device_group import DeviceGroup
from ...ir.plan.memory_action import BASIC_ACTIONS, MemoryAction
from ...ir.plan.plan import Optimizer, Span, Stage
from ...ir.plan.strategy import ROLES, Strategy
from ..pricing.boundary_transfers import TransferBytes
from ..pricing.candidate_pricer import CandidatePricer
from ..pricing.function_prices import CallPrice, FunctionPrices
from ..pricing.stage_cost import StageCost, StrategyCost
from ..question.candidate import CallPoint, RunPoint
from ..question.pins import Pin, pin_per_call
from ..question.strategy_space import axis_families, strategies
from ..sharding.model_values import ModelValues


class GroupType(NamedTuple):
    """Interchangeable device groups: `width` devices of one part of the cluster."""

    part: int
    width: int


class StageKey(NamedTuple):
    """What the cost of a stage depends on: classes of its calls, what is pinned, boundary, whether it
    is the end."""

    call_classes: tuple[int, ...]
    pins: frozenset[Pin]
    boundary: TransferBytes
    is_last: bool


class StageChoice(NamedTuple):
    """Strategy and memory action of a device group for its calls, and the stage that results."""

    strategy: Strategy
    memory: MemoryAction
    stage: Stage

    @property
    def seconds(self) -> float:
        return self.stage.forward_seconds + self.stage.backward_seconds


class GroupChoice(NamedTuple):
    """A device group and what it runs."""

    group: DeviceGroup
    strategy: Strategy
    memory: MemoryAction
    calls: Span


def keeps(choice: StageChoice, pins: Iterable[Pin]) -> bool:
    """Whether a choice is what is pinned of its calls: a device group has one strategy."""
    return all(
        pin.strategy == choice.strategy and pin.memory in (None, choice.memory) for pin in pins
    )


class GroupPrices:
    """Prices stages on device groups of a mixed cluster, on micro-batches of `samples`."""

    def __init__(
        self,
        model: Model,
        cluster: Cluster,
        optimizer: Optimizer,
        roles: tuple[str, ...],
        memory_bytes: int | None,
        values: ModelValues | None = None,
        pins: tuple[Pin, ...] = (),
    ) -> None:
        self.model, self.cluster, self.optimizer = model, cluster, optimizer
        self.values = values or ModelValues(model)
        batch_only = model.batch_only_calls()
        self.pins = [
            None if call in batch_only else pin
            for call, pin in enumerate(pin_per_call(model, pins) if pins else ())
        ]
        self.roles = tuple(r for r in roles if not ROLES[r].stages)
        self.memory_bytes = memory_bytes
        self.parts = cluster.parts or (cluster,)
        self.dtype = model.parameters[0].type.dtype if model.parameters else "float32"
        self.equal_spans: dict[StageKey, Span] = {}

    @cached_method
    def pricer(self, group_type: GroupType) -> CandidatePricer:
        """The candidate pricer of the devices of a group, taken for a cluster of their own."""
        item_bytes = narrowest_item_bytes(self.model.parameters)
        execution = execution_of("plait", self.optimizer, "", item_bytes, grouped=True)
        cluster, values = self.group_cluster(group_type), self.values
        function_prices = FunctionPrices(self.model, cluster, execution, values=values)
        return CandidatePricer(function_prices, self.model.batch, self.optimizer)

    def group_cluster(self, group_type: GroupType) -> Cluster:
        """The devices of a group as a cluster."""
        return sub_cluster(self.parts[group_type.part], group_type.width)

    def type_of(self, group: DeviceGroup) -> GroupType:
        """The type of a device group."""
        return GroupType(group.part, group.devices)

    def memory_limit(self, part: int) -> int:
        """Bytes per device of a part that a plan may use."""
        return memory_limit(self.parts[part], self.memory_bytes)

    def model_flops(self) -> float:
        """Floating-point operations of a step."""
        prices, total = self.pricer(GroupType(0, 1)).function_prices, 0.0
        for name, count in Counter(call.function for call in self.model.calls).items():
            price = prices.call_price(name, CallPoint((), self.model.batch))
            total += (
                count * (price.cost.forward.flops + price.cost.backward.flops) if price else 0.0
            )
        return total

    @cached_method
    def group_strategies(self, group_type: GroupType) -> list[Strategy]:
        """Every strategy of a device group."""
        cluster = self.group_cluster(group_type)
        by_axes = (
            strategies(cluster.devices, model_axes, self.roles, 1)
            for family in axis_families(cluster, self.roles)
            for model_axes in family
            if cluster.devices % prod(size for _, size in model_axes) == 0
        )
        return list(dict.fromkeys(chain.from_iterable(by_axes)))

    def fastest_choice(
        self, group_type: GroupType, samples: int, calls: Span, after: int
    ) -> StageChoice | None:
        """The fastest choice that fits for these calls with `after` later stages.

        None where nothing fits.
        """
        choice = self.fastest_of(group_type, samples, self.equal_span(group_type, calls), after)
        if choice is None or choice.stage.model_chunks == (calls,):
            return choice
        return choice._replace(stage=replace(choice.stage, model_chunks=(calls,)))

    @cached_method
    def fastest_of(
        self, group_type: GroupType, samples: int, calls: Span, after: int
    ) -> StageChoice | None:
        """The fastest choice that fits for these calls."""
        choices = self.choices_of(group_type, samples, calls, after)
        pins = self.pins_of(calls)
        return min(
            (c for c in choices if self.fits_memory(group_type, c) and keeps(c, pins)),
            key=lambda c: (c.seconds, str(c.strategy)),
            default=None,
        )

    @cached_method
    def equal_span(self, group_type: GroupType, calls: Span) -> Span:
        """The first calls asked for that cost the same as these."""
        (first, last), pricer = calls, self.pricer(group_type)
        key = StageKey(
            tuple(pricer.call_classes[first:last]),
            self.pins_of(calls),
            pricer.aggregator.boundaries.bytes[last],
            last == len(pricer.calls),
        )
        return self.equal_spans.setdefault(key, calls)

    def pins_of(self, calls: Span) -> frozenset[Pin]:
        """What is pinned of these calls."""
        return frozenset(pin for pin in self.pins[slice(*calls)] if pin is not None)

    def fits_memory(self, group_type: GroupType, choice: StageChoice) -> bool:
        return choice.stage.peak_bytes <= self.memory_limit(group_type.part)

    def choices_of(
        self, group_type: GroupType, samples: int, calls: Span, after: int
    ) -> Iterator[StageChoice]:
        """Every choice of a device group for these calls, on micro-batches of `samples`."""
        pricer = self.pricer(group_type).stage_pricer
        micro_batches = self.model.batch // samples
        in_flight = pricer.in_flight(after + 1, 0, micro_batches)
        for strategy in self.group_strategies(group_type):
            for memory in BASIC_ACTIONS:
                point = RunPoint(strategy, self.model.batch, micro_batches, memory)
                cost = self.stage_cost(group_type, point, self.equal_span(group_type, calls))
                if cost is not None:
                    part = StrategyCost(strategy, cost)
                    stage = pricer.stage([part], in_flight, 0.0)
                    yield StageChoice(strategy, memory, stage)

    def stage_of(self, choice: GroupChoice, samples: int, in_flight: float) -> Stage:
        """The stage of a choice, with this many micro-batches in flight."""
        group_type, count = self.type_of(choice.group), self.model.batch // samples
        point = RunPoint(choice.strategy, self.model.batch, count, choice.memory)
        cost = self.stage_cost(group_type, point, self.equal_span(group_type, choice.calls))
        assert cost is not None, "a choice was priced before"
        waiting = InFlight(in_flight, len(choice.group.micro_batches))
        stage = self.pricer(group_type).stage_pricer.stage(
            [StrategyCost(choice.strategy, cost)], waiting, 0.0
        )
        return replace(stage, model_chunks=(choice.calls,))

    @cached_method
    def stage_cost(self, group_type: GroupType, point: RunPoint, calls: Span) -> StageCost | None:
        """Cost of these calls; None where they cannot be sharded so or none has work."""
        aggregator = self.pricer(group_type).aggregator
        prices, members = (
            self.group_call_prices(group_type, point),
            aggregator.calls_per_micro_batch((calls,)),
        )
        if prices is None or not members:
            return None
        return aggregator.cost(prices, (calls,), point.replica, members)

    @cached_method
    def group_call_prices(self, group_type: GroupType, point: RunPoint) -> list[CallPrice] | None:
        """The price of every call on a micro-batch; None where one cannot be sharded so."""
        if not point.divides:
            return None
        return self.pricer(group_type).call_prices.uniform(point.replica)

    def least_seconds(self, group_type: GroupType, samples: int, calls: Span) -> float:
        """The least seconds of a group for these calls, with unlimited memory; inf for none."""
        return self._least_seconds(group_type, samples, self.equal_span(group_type, calls))

    @cached_method
    def _least_seconds(self, group_type: GroupType, samples: int, calls: Span) -> float:
        choices = self.choices_of(group_type, samples, calls, 0)
        return min((choice.seconds for choice in choices), default=inf)
