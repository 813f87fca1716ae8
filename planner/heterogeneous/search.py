"""Planning for heterogeneous clusters: shapes in order of their bounds, the best few simulated.

A shape's bound assumes that all its groups are always busy with the fastest layers they can run;
shapes whose bound is no better than the best plan are skipped. Where one part alone, or all
devices treated as the slowest, is faster than any mixed plan, that is the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from msgspec.structs import replace

from ...ir.cached import cached_method
from ...ir.devices.cluster import Cluster
from ...ir.devices.heterogeneous import HeterogeneousCluster
from ...ir.errors import InfeasibleError, LimitError, UsageError
from ...ir.lowering.cast import narrowest_item_bytes
from ...ir.model.model import Model
from ...ir.plan.heterogeneous import DeviceGroup, HeterogeneousPlan, PipelineReplica
from ...ir.plan.plan import Plan
from ..question.deadline import Deadline
from ..question.options import PlanOptions, optimizer_states
from ..question.strategy_space import divisors
from ..search.driver import SearchSpace
from ..search.plan import plan as plan_cluster
from ..search.to_plan import assemble
from .group_prices import GroupPrices, GroupType
from .layer_split import LayerSplit
from .pipeline_times import deal_micro_batches, replica_seconds, simulated_seconds, sync_seconds
from .shapes import PlanShape, ReplicaShape, shapes

SIMULATED = 8  # best plans by the closed form
MOST_MICRO_BATCHES = 1024


def plan(
    model: Model, cluster: HeterogeneousCluster, options: PlanOptions
) -> HeterogeneousPlan | Plan:
    """The fastest plan found that fits; an ordinary plan where all parts are equal.

    Raises InfeasibleError where nothing fits, UsageError for unsupported options.
    """
    options.check()
    if options.pins or options.compress != "none" or options.gradient_precision:
        raise UsageError(
            "a heterogeneous cluster is planned without --pin, --compress and --gradient-precision"
        )
    homogeneous = cluster.as_homogeneous()
    if homogeneous is not None:
        return plan_cluster(model, homogeneous, options)
    if not options.target.extras:
        raise UsageError(f"{options.engine} trains on devices of one kind; plan for a part of them")
    return HeterogeneousSearch(model, cluster, options).run()


class BoundedShape(NamedTuple):
    """A shape on micro-batches of `samples`, and a lower bound of its step seconds."""

    bound: float
    shape: PlanShape
    samples: int


class HeterogeneousSearch:
    """Searches plans for one model on one heterogeneous cluster."""

    def __init__(self, model: Model, cluster: HeterogeneousCluster, options: PlanOptions) -> None:
        self.model, self.cluster, self.options = model, cluster, options
        self.optimizer = optimizer_states(options, narrowest_item_bytes(model.parameters))
        self.group_prices = GroupPrices(
            model, cluster, self.optimizer, options.roles, options.memory_bytes
        )
        self.deadline = Deadline(options.time_limit_seconds)

    def run(self) -> HeterogeneousPlan | Plan:
        """The best mixed plan, or a faster plan for one part or for uniform slow devices."""
        single_part_plans = [
            self.plan_alone(part)
            for part in (*self.cluster.parts, self.cluster.as_slowest_device())
        ]
        fitting_plans = [plan for plan in single_part_plans if plan is not None]
        best = min((plan.prediction.step_seconds for plan in fitting_plans), default=inf)
        mixed_plans: list[HeterogeneousPlan] = []
        by_bound = self.shapes_by_bound()
        for bound, shape, samples in by_bound:
            if bound >= best or self.deadline.passed():
                break
            plan = self.shape_plan(shape, samples)
            if plan is not None:
                mixed_plans.append(plan)
                best = min(best, plan.step_seconds)
        mixed_plans.sort(key=lambda plan: plan.step_seconds)
        best_mixed = min(map(self.simulate, mixed_plans[:SIMULATED]), key=_step, default=None)
        if best_mixed is None and not fitting_plans:
            if self.deadline.stopped:
                raise LimitError("time was up: nothing that fits was found yet; give it more time")
            raise InfeasibleError(
                f"infeasible: {self.model.name} fits no mixture of the parts of {self.cluster}, "
                "none of them alone, nor all as if they were the smallest"
            )
        if best_mixed is None or any(
            _step(plan) <= best_mixed.step_seconds for plan in fitting_plans
        ):
            return min(fitting_plans, key=_step)
        single_part_seconds = tuple(
            None if plan is None else _step(plan) for plan in single_part_plans
        )
        bound = min(by_bound[0].bound, best_mixed.step_seconds)
        return replace(
            best_mixed,
            single_part_seconds=single_part_seconds,
            lower_bound_seconds=bound,
            complete=not self.deadline.stopped,
        )

    def plan_alone(self, cluster: Cluster) -> Plan | None:
        """The plan for one ordinary cluster; None where none fits."""
        space = SearchSpace.create(self.model, cluster, self.options)
        space.deadline = self.deadline
        space.run()
        return (
            assemble(space, min(space.fitting(), key=space.sort_key)) if space.fitting() else None
        )

    def micro_batch_sizes(self) -> list[int]:
        """Sizes of micro-batches in samples, large ones first."""
        batch = self.model.batch
        sizes = [b for b in reversed(divisors(batch)) if batch // b <= MOST_MICRO_BATCHES]
        fixed = self.options.micro_batches
        return sizes if fixed is None else [b for b in sizes if batch // b == fixed]

    def shapes_by_bound(self) -> list[BoundedShape]:
        """Shapes and sizes of micro-batches, in order of their lower bounds."""
        by_bound: list[BoundedShape] = []
        for samples in self.micro_batch_sizes():
            single_devices = [GroupType(part, 1) for part in range(len(self.cluster.parts))]
            strength = [
                1 / self.group_prices.device_seconds(group_type, samples)
                for group_type in single_devices
            ]
            for shape in shapes(self.cluster, strength):
                if len(shape) <= self.model.batch // samples:
                    bound = self.shape_bound(shape, samples)
                    by_bound.append(BoundedShape(bound, shape, samples))
        return sorted(by_bound, key=lambda b: (b.bound, -b.samples, len(b.shape)))

    def shape_bound(self, shape: PlanShape, samples: int) -> float:
        """Lower bound of the step seconds of a shape."""
        rate = sum(
            k.width / self.group_prices.device_seconds(k, samples) for row in shape for k in row
        )
        return self.model.batch / samples / rate if rate else inf

    def shape_plan(self, shape: PlanShape, samples: int) -> HeterogeneousPlan | None:
        """The plan of a shape; None where a replica cannot hold the model."""
        groups_by_replica: list[list[DeviceGroup]] = []
        devices_used = [0] * len(self.cluster.parts)
        for replica_shape in shape:
            groups = self.replica_groups(replica_shape, samples, devices_used)
            if groups is None:
                return None
            groups_by_replica.append(groups)
        count = self.model.batch // samples
        replicas = [
            PipelineReplica(n, tuple(groups), replica_seconds(self.cluster, groups, n))
            for n, groups in zip(
                deal_micro_batches(self.cluster, groups_by_replica, count),
                groups_by_replica,
                strict=True,
            )
        ]
        return self.plan(replicas, samples)

    def replica_groups(
        self, replica_shape: ReplicaShape, samples: int, devices_used: list[int]
    ) -> list[DeviceGroup] | None:
        """Device groups of a replica on the next free devices; `devices_used`: of each part."""
        bounds = self.replica_bounds(replica_shape, samples)
        split = LayerSplit(self.group_prices, replica_shape, samples)
        return None if bounds is None else self.place_groups(split, bounds, devices_used)

    @cached_method
    def replica_bounds(self, replica_shape: ReplicaShape, samples: int) -> list[int] | None:
        """First call of every device group and the number of calls; None where none fits."""
        split = LayerSplit(self.group_prices, replica_shape, samples)
        bounds = split.fastest_bounds()
        if bounds is None:
            return None
        share = self.model.batch // samples * len(replica_shape) // self.cluster.devices

        def cost(bounds: list[int]) -> float:
            groups = self.place_groups(split, bounds, [0] * len(self.cluster.parts))
            return inf if groups is None else replica_seconds(self.cluster, groups, max(1, share))

        return split.refine(bounds, cost)

    def place_groups(
        self, split: LayerSplit, bounds: Sequence[int], devices_used: list[int]
    ) -> list[DeviceGroup] | None:
        """Device groups with these bounds on the next free devices; None where one does not fit."""
        choices = split.choices(bounds)
        if choices is None:
            return None
        groups: list[DeviceGroup] = []
        for group_type, choice in zip(split.group_types, choices, strict=True):
            groups.append(
                DeviceGroup(
                    group_type.part,
                    devices_used[group_type.part],
                    choice.strategy,
                    choice.memory,
                    choice.stage,
                )
            )
            devices_used[group_type.part] += group_type.width
        return groups

    def plan(self, replicas: Sequence[PipelineReplica], samples: int) -> HeterogeneousPlan:
        """The plan of these replicas, leaving out those without micro-batches."""
        working = tuple(replica for replica in replicas if replica.micro_batches)
        sync = sync_seconds(self.cluster, [replica.device_groups for replica in working])
        step = max(replica.seconds for replica in working) + sync
        model = self.model
        tokens = max((i.type.elements for i in model.inputs if i.batched), default=model.batch)
        return HeterogeneousPlan(
            model=model.name,
            model_digest=model.fingerprint(),
            cluster=self.cluster,
            global_batch=model.batch,
            micro_batch=samples,
            precision=self.options.precision or "as traced",
            optimizer=self.optimizer,
            replicas=working,
            sync_seconds=sync,
            step_seconds=step,
            tokens_per_second=tokens / step,
            lower_bound_seconds=0.0,
            calls=tuple(call.path for call in model.calls),
            memory_limit_bytes=self.options.memory_bytes,
        )

    def simulate(self, plan: HeterogeneousPlan) -> HeterogeneousPlan:
        """The plan with its replicas simulated event by event."""
        replicas = [
            replace(replica, seconds=simulated_seconds(self.cluster, replica))
            for replica in plan.replicas
        ]
        return self.plan(replicas, plan.micro_batch)


def _step(plan: HeterogeneousPlan | Plan) -> float:
    return plan.prediction.step_seconds if isinstance(plan, Plan) else plan.step_seconds
