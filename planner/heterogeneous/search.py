"""Planning for mixed clusters: shapes in order of their bounds, the best few simulated.

Shapes whose bound (`bounds`) is no better than the best plan are skipped. Where one part alone, or all
devices treated as the slowest, is faster than any mixed plan, that is the plan. What was not chosen
are its alternatives: every part alone, all as the slowest by family, the next mixed plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice, pairwise
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster
from ...ir.devices.mixed import as_slowest_devices
from ...ir.errors import InfeasibleError, LimitError
from ...ir.lowering.cast import narrowest_item_bytes
from ...ir.model.model import Model
from ...ir.plan.family import DEVICE_GROUPS, family
from ...ir.plan.groups.device_group import DeviceGroup
from ...ir.plan.plan import Alternative, Plan
from ..question.deadline import Deadline, Watch, unwatched, without_bound
from ..question.options import PlanOptions
from ..question.strategy_space import divisors
from ..question.training import optimizer_states
from ..search.driver import SearchSpace
from ..search.families import with_families, with_terms
from ..search.first_plan import first_fitting
from ..search.price_cache import PriceCache
from ..search.to_plan import assemble
from .bounds import ShapeBounds, dealt_seconds
from .group_prices import GroupChoice, GroupPrices, GroupType
from .layer_split import CLOSE, LayerSplit
from .pipeline_times import PlacedStage, deal_micro_batches, replica_seconds, sync_seconds
from .shapes import PlanShape, ReplicaShape, near_parts, shapes
from .to_plan import assemble_groups

SIMULATED = 8  # best plans by the closed form
MOST_MICRO_BATCHES = 1024


class BoundedShape(NamedTuple):
    """A shape on micro-batches of `samples`, and a lower bound of its step seconds."""

    bound: float
    shape: PlanShape
    samples: int


class SharedPipelines(NamedTuple):
    """Pipelines with their numbers of micro-batches of `samples`, and their step in closed form."""

    step_seconds: float
    replicas: tuple[tuple[PlacedStage, ...], ...]
    counts: tuple[int, ...]
    samples: int


class MixedSearch:
    """Searches plans for one model on one mixed cluster."""

    def __init__(
        self, model: Model, cluster: Cluster, options: PlanOptions, watch: Watch = unwatched
    ) -> None:
        self.model, self.cluster, self.options, self.watch = model, cluster, options, watch
        self.optimizer = optimizer_states(options, narrowest_item_bytes(model.parameters))
        self.prices = PriceCache()
        values = self.prices.values(model)
        self.group_prices = GroupPrices(
            model,
            cluster,
            self.optimizer,
            options.roles,
            options.memory_bytes,
            values,
            options.pins,
        )
        self.parts, self.bounds = self.group_prices.parts, ShapeBounds(self.group_prices)
        self.deadline = Deadline(options.time_limit_seconds)
        self.unbounded = False  # some shapes have no bound: time was up

    def run(self) -> Plan:
        """The best mixed plan, or a faster plan for one part or for all as the slowest devices."""
        uniform = [self.plan_uniform(cluster) for cluster in self.uniform_clusters()]
        alone = [plan for plan in uniform if plan is not None]
        best = min((plan.prediction.step_seconds for plan in alone), default=inf)
        mixed, lower = list[SharedPipelines](), inf
        for bound, shape, samples in self.shapes_by_bound():
            if bound >= best:
                break
            if self.deadline.passed():
                lower = min(lower, bound)
                break
            self.watch(best, 0.0 if self.unbounded else bound)
            dealt = self.bounds.seconds(shape, samples, dealt_seconds)
            if dealt < best:
                pipelines = self.shared_pipelines(shape, samples)
                if pipelines is not None:
                    mixed.append(pipelines)
                    best = min(best, pipelines.step_seconds)
                    dealt = self.bound_of_splits(shape, samples)
            lower = min(lower, dealt)
        mixed.sort(key=lambda one: one.step_seconds)
        plans = [self.plan_of(pipelines) for pipelines in mixed[:SIMULATED]]
        plans = [plan for plan in plans if plan.fits]
        if not plans and not alone:
            alone = list(islice(self.first_plans(), 1))
            if not alone:
                raise self.no_plan()
        chosen = min([*alone, *plans], key=_step)
        lower = 0.0 if self.unbounded else min(lower, _step(chosen))
        return replace(
            chosen,
            gap=max(0.0, 1 - lower / _step(chosen)) if chosen.groups else chosen.gap,
            alternatives=tuple(
                sorted(
                    dict.fromkeys(self.alternatives(chosen, alone, plans)),
                    key=lambda a: (not a.fits, a.step_seconds),
                )
            ),
            complete=chosen.complete and not self.deadline.stopped,
        )

    def alternatives(
        self, chosen: Plan, uniform: Sequence[Plan], mixed: Sequence[Plan]
    ) -> Iterator[Alternative]:
        """Uniform plans and the next mixed ones with their families, then those of all devices as the
        slowest."""
        for plan in uniform:
            part = plan.cluster in self.parts
            name = f"{plan.cluster.name} alone" if part else "all as the slowest"
            if plan is not chosen:
                yield _alternative(plan, name, name if part else family(plan.strategies))
        for plan in mixed:
            if plan is not chosen:
                yield _alternative(plan, DEVICE_GROUPS, DEVICE_GROUPS)
        for plan in uniform:
            yield from () if plan.cluster in self.parts else plan.alternatives

    def no_plan(self) -> InfeasibleError | LimitError:
        """The error where nothing that fits was found."""
        if self.deadline.stopped:
            return LimitError("time was up: nothing that fits was found yet; give it more time")
        if pins := self.options.pins:
            shown = ", ".join(f"{pin.glob}:{pin.strategy}" for pin in pins)
            return InfeasibleError(
                f"infeasible: no device groups of {self.cluster} hold {self.model.name} with {shown}: "
                "a group has one strategy, for as many devices as it has"
            )
        return InfeasibleError(
            f"infeasible: {self.model.name} fits no mixture of the parts of {self.cluster}, "
            "none of them alone, nor all as if they were the smallest"
        )

    def uniform_clusters(self) -> list[Cluster]:
        """Each part without the others, and all devices as if they were the slowest; none where device
        groups are pinned."""
        if self.options.pins:
            return []
        return [*self.parts, as_slowest_devices(self.cluster)] if self.cluster.parts else []

    def plan_uniform(self, cluster: Cluster) -> Plan | None:
        """The plan for one uniform cluster, with its families where it has all devices; None where none
        fits or time is up."""
        if self.deadline.passed():
            return None
        space = SearchSpace.create(self.model, cluster, self.options, self.prices)
        space.deadline, space.watch = self.deadline, without_bound(self.watch)
        space.run()
        best = space.best
        if best is None:
            return None
        plan = assemble(space, best)
        return plan if cluster in self.parts else with_families(space, plan, best)

    def first_plans(self) -> Iterator[Plan]:
        """First plans for uniform clusters, the largest first, whether or not time is up."""
        for cluster in reversed(self.uniform_clusters()):
            space = SearchSpace.create(self.model, cluster, self.options, self.prices)
            first = first_fitting(space)
            if first is not None:
                space.deadline, space.candidates = self.deadline, [first]
                yield assemble(space, first)

    def micro_batch_sizes(self) -> list[int]:
        """Sizes of micro-batches in samples, large ones first."""
        batch = self.model.batch
        sizes = [b for b in reversed(divisors(batch)) if batch // b <= MOST_MICRO_BATCHES]
        fixed = self.options.micro_batches
        return sizes if fixed is None else [b for b in sizes if batch // b == fixed]

    def shapes_by_bound(self) -> list[BoundedShape]:
        """Shapes and sizes of micro-batches, in order of their lower bounds; as many as time allows."""
        by_bound, near = list[BoundedShape](), near_parts(self.cluster)
        for samples in self.micro_batch_sizes():
            single_devices = [GroupType(part, 1) for part in range(len(self.parts))]
            strength = [self.bounds.compute_rate([device], samples) for device in single_devices]
            for shape in shapes(self.cluster, near, strength):
                if self.deadline.passed():
                    self.unbounded = True
                    return sorted(by_bound, key=_simplest_first)
                if len(shape) <= self.model.batch // samples:
                    bound = self.bounds.seconds(shape, samples)
                    by_bound.append(BoundedShape(bound, shape, samples))
        return sorted(by_bound, key=_simplest_first)

    def shared_pipelines(self, shape: PlanShape, samples: int) -> SharedPipelines | None:
        """A shape with its layers split and its micro-batches dealt out; None where a pipeline cannot
        hold the model."""
        replicas: list[tuple[PlacedStage, ...]] = []
        devices_used = [0] * len(self.parts)
        for replica_shape in shape:
            stages = self.replica_stages(replica_shape, samples, devices_used)
            if stages is None:
                return None
            replicas.append(tuple(stages))
        counts = deal_micro_batches(self.cluster, replicas, self.model.batch // samples)
        working = [(r, n) for r, n in zip(replicas, counts, strict=True) if n]
        seconds = max(replica_seconds(self.cluster, r, n) for r, n in working)
        pipelines, numbers = zip(*working, strict=True)
        sync = sync_seconds(self.cluster, list(chain.from_iterable(pipelines)))
        return SharedPipelines(seconds + sync, pipelines, numbers, samples)

    def replica_stages(
        self, replica_shape: ReplicaShape, samples: int, devices_used: list[int]
    ) -> list[PlacedStage] | None:
        """Stages of a pipeline on the next free devices; `devices_used`: of each part."""
        bounds = self.replica_bounds(replica_shape, samples)
        split = LayerSplit(self.group_prices, replica_shape, samples)
        return None if bounds is None else self.place_stages(split, bounds, devices_used)

    @cached_method
    def fastest_bounds(self, replica_shape: ReplicaShape, samples: int) -> list[int] | None:
        """Boundaries of a pipeline whose slowest stage is as fast as can be; None where none fits."""
        return LayerSplit(self.group_prices, replica_shape, samples).fastest_bounds()

    def bound_of_splits(self, shape: PlanShape, samples: int) -> float:
        """Lower bound of a shape's step: no split of its calls has a faster slowest stage."""
        slowest = dict[ReplicaShape, float]()
        for row in set(shape):
            bounds = self.fastest_bounds(row, samples)
            split = LayerSplit(self.group_prices, row, samples)
            slowest[row] = (1 - CLOSE) * split.slowest(bounds) if bounds else 0.0
        return self.bounds.seconds(shape, samples, dealt_seconds, slowest)

    @cached_method
    def replica_bounds(self, replica_shape: ReplicaShape, samples: int) -> list[int] | None:
        """First call of every stage and the number of calls; None where none fits."""
        split = LayerSplit(self.group_prices, replica_shape, samples)
        bounds = self.fastest_bounds(replica_shape, samples)
        if bounds is None:
            return None
        share = self.model.batch // samples * len(replica_shape) // self.cluster.devices

        def cost(bounds: list[int]) -> float:
            stages = self.place_stages(split, bounds, [0] * len(self.parts))
            return inf if stages is None else replica_seconds(self.cluster, stages, max(1, share))

        return split.refine(bounds, cost)

    def place_stages(
        self, split: LayerSplit, bounds: Sequence[int], devices_used: list[int]
    ) -> list[PlacedStage] | None:
        """Stages with these bounds on the next free devices; None where one does not fit."""
        choices = split.choices(bounds)
        if choices is None:
            return None
        stages: list[PlacedStage] = []
        for group_type, choice in zip(split.group_types, choices, strict=True):
            stages.append(PlacedStage(group_type, devices_used[group_type.part], choice))
            devices_used[group_type.part] += group_type.width
        return stages

    def plan_of(self, pipelines: SharedPipelines) -> Plan:
        """The plan of pipelines, simulated."""
        bounds = accumulate(pipelines.counts, initial=0)
        choices = [
            GroupChoice(
                DeviceGroup(
                    placed.type.part, placed.first_device, placed.type.width, tuple(range(*span))
                ),
                placed.choice.strategy,
                placed.choice.memory,
                placed.calls,
            )
            for replica, span in zip(pipelines.replicas, pairwise(bounds), strict=True)
            for placed in replica
        ]
        return assemble_groups(self.group_prices, choices, self.options, pipelines.samples)


def _simplest_first(one: BoundedShape) -> tuple[float, int, int]:
    return one.bound, -one.samples, len(one.shape)


def _step(plan: Plan) -> float:
    return plan.prediction.step_seconds


def _alternative(plan: Plan, name: str, family: str) -> Alternative:
    """A plan as one that was not chosen, with its terms; `name` says for which devices it is."""
    memory = "+".join(sorted({str(x.memory) for x in plan.layers}))
    row = Alternative(
        f"{name}: {plan.strategy_text}",
        plan.micro_batches,
        memory,
        plan.prediction.step_seconds,
        plan.peak_bytes,
        plan.fits,
        plan.chunks_per_stage,
        family=family,
    )
    return with_terms(row, plan)
