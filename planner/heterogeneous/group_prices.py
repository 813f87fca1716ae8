"""Prices of stages on device groups of a heterogeneous cluster, under their fastest strategies."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, prod
from typing import NamedTuple

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.devices.heterogeneous import HeterogeneousCluster, sub_cluster
from ...ir.model import Model
from ...ir.plan.memory_action import BASIC_ACTIONS, MemoryAction
from ...ir.plan.plan import Optimizer, Span, Stage
from ...ir.plan.strategy import ROLES, Strategy
from ..candidate import StageCost
from ..pricing.candidate_pricer import CandidatePricer
from ..pricing.function_prices import CallPrice, FunctionPrices
from ..strategy_space import axis_families, strategies


class GroupType(NamedTuple):
    """Interchangeable device groups: `width` devices of one part of the cluster."""

    part: int
    width: int


StageKey = tuple[tuple[int, ...], tuple[int, int], bool]


class StageChoice(NamedTuple):
    """Strategy and memory action of a device group for its calls, and the stage that results."""

    strategy: Strategy
    memory: MemoryAction
    stage: Stage

    @property
    def seconds(self) -> float:
        return self.stage.forward_seconds + self.stage.backward_seconds


class GroupPrices:
    """Prices stages on device groups of a heterogeneous cluster, on micro-batches of `samples`."""

    def __init__(
        self,
        model: Model,
        cluster: HeterogeneousCluster,
        optimizer: Optimizer,
        roles: tuple[str, ...],
        memory_bytes: int | None,
    ) -> None:
        self.model, self.cluster, self.optimizer = model, cluster, optimizer
        self.roles = tuple(r for r in roles if not ROLES[r].stages)
        self.memory_bytes = memory_bytes
        self.pricers: dict[GroupType, CandidatePricer] = {}
        self.strategies_by_group: dict[GroupType, list[Strategy]] = {}
        self.call_prices: dict[
            tuple[GroupType, Strategy, MemoryAction, int], list[CallPrice] | None
        ] = {}
        self.stage_costs: dict[
            tuple[GroupType, Strategy, MemoryAction, int, StageKey], StageCost | None
        ] = {}
        self.known_choices: dict[tuple[GroupType, int, StageKey, int], StageChoice | None] = {}
        self.device_seconds_known: dict[tuple[GroupType, int], float] = {}
        self.stage_keys: dict[Span, StageKey] = {}

    def pricer(self, group_type: GroupType) -> CandidatePricer:
        """The candidate pricer of the devices of a group, taken for a cluster of their own."""
        if group_type not in self.pricers:
            group_cluster = sub_cluster(self.cluster.parts[group_type.part], group_type.width)
            function_prices = FunctionPrices(self.model, group_cluster)
            self.pricers[group_type] = CandidatePricer(
                function_prices, self.model.batch, self.optimizer
            )
            self.strategies_by_group[group_type] = list(
                dict.fromkeys(self.group_strategies(group_cluster))
            )
        return self.pricers[group_type]

    def group_strategies(self, cluster: Cluster) -> Iterator[Strategy]:
        """Every strategy of a device group."""
        for family in axis_families(cluster, self.roles):
            for model_axes in family:
                if cluster.devices % prod(size for _, size in model_axes) == 0:
                    yield from strategies(cluster.devices, model_axes, self.roles, 1)

    def fastest_choice(
        self, group_type: GroupType, samples: int, first: int, last: int, after: int
    ) -> StageChoice | None:
        """The fastest choice that fits for calls `first` to `last - 1` with `after` later stages.

        None where nothing fits.
        """
        key = group_type, samples, self.stage_key(group_type, first, last), after
        if key not in self.known_choices:
            fitting = (
                c
                for c in self.choices_of(group_type, samples, first, last, after)
                if self.fits_memory(group_type, c)
            )
            self.known_choices[key] = min(
                fitting, key=lambda c: (c.seconds, str(c.strategy)), default=None
            )
        choice = self.known_choices[key]
        if choice is None or choice.stage.model_chunks == ((first, last),):
            return choice
        return choice._replace(stage=replace(choice.stage, model_chunks=((first, last),)))

    def stage_key(self, group_type: GroupType, first: int, last: int) -> StageKey:
        """Key of stages that cost the same: classes of their calls, boundary, and whether it is the
        end.
        """
        if (first, last) not in self.stage_keys:
            pricer = self.pricer(group_type)
            self.stage_keys[first, last] = (
                tuple(pricer.call_classes[first:last]),
                pricer.aggregator.boundary_bytes[last],
                last == len(pricer.calls),
            )
        return self.stage_keys[first, last]

    def fits_memory(self, group_type: GroupType, choice: StageChoice) -> bool:
        return choice.stage.peak_bytes <= self.cluster.memory_limit(
            group_type.part, self.memory_bytes
        )

    def choices_of(
        self, group_type: GroupType, samples: int, first: int, last: int, after: int
    ) -> Iterator[StageChoice]:
        """Every choice of a device group for these calls."""
        pricer = self.pricer(group_type)
        micro_batches = self.model.batch // samples
        in_flight = pricer.in_flight(after + 1, 0, micro_batches)
        for strategy in self.strategies_by_group[group_type]:
            for memory in BASIC_ACTIONS:
                cost = self.stage_cost(group_type, strategy, memory, samples, first, last)
                if cost is not None:
                    stage = pricer.stage([(strategy, cost)], micro_batches, in_flight, 0.0)
                    yield StageChoice(strategy, memory, stage)

    def stage_cost(
        self,
        group_type: GroupType,
        strategy: Strategy,
        memory: MemoryAction,
        samples: int,
        first: int,
        last: int,
    ) -> StageCost | None:
        """Cost of these calls; None where they cannot be sharded so or none has work."""
        key = group_type, strategy, memory, samples, self.stage_key(group_type, first, last)
        if key not in self.stage_costs:
            pricer, spans = self.pricer(group_type), ((first, last),)
            prices, members = (
                self.group_call_prices(group_type, strategy, memory, samples),
                pricer.aggregator.calls_per_micro_batch(spans),
            )
            self.stage_costs[key] = (
                None
                if prices is None or not members
                else pricer.aggregator.cost(
                    prices, spans, strategy.model_axes, samples // strategy.batch_degree(), members
                )
            )
        return self.stage_costs[key]

    def group_call_prices(
        self, group_type: GroupType, strategy: Strategy, memory: MemoryAction, samples: int
    ) -> list[CallPrice] | None:
        """The price of every call on a micro-batch; None where one cannot be sharded so."""
        key, degree, batch = (
            (group_type, strategy, memory, samples),
            strategy.batch_degree(),
            self.model.batch,
        )
        if samples % degree:
            return None
        if key not in self.call_prices:
            self.call_prices[key] = self.pricer(group_type).call_prices.uniform(
                strategy.model_axes, batch // degree, batch // samples, memory
            )
        return self.call_prices[key]

    def device_seconds(self, group_type: GroupType, samples: int) -> float:
        """Lower bound of the model's device-seconds per micro-batch, with unlimited memory."""
        if (group_type, samples) not in self.device_seconds_known:
            choices = self.choices_of(group_type, samples, 0, len(self.model.calls), 0)
            seconds = min((choice.seconds for choice in choices), default=inf)
            self.device_seconds_known[group_type, samples] = group_type.width * seconds
        return self.device_seconds_known[group_type, samples]
