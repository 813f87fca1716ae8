"""The search for a fleet: every shape and size of micro-batch, by a bound, the best few simulated.

No plan of a shape is faster than all its crews busy all the time with the fastest layers they can run;
shapes whose bound is no better than the best plan found are left out. Where one part alone, or all
devices as if they were the slowest, are faster than any mixture, that is the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from msgspec.structs import replace

from ...ir.devices.cluster import Cluster
from ...ir.devices.heterogeneous import Crew, Fleet, FleetPlan, Line
from ...ir.errors import InfeasibleError, UsageError
from ...ir.model import Model
from ...ir.plan.plan import Plan
from ...ir.tensor import ITEM_BYTES
from ..deadline import Clock
from ..options import PlanOptions, optimizer_states
from ..search.driver import Space
from ..search.plan import plan as plan_cluster
from ..search.to_plan import assemble
from ..strategy_space import divisors
from .group_prices import Crews, Kind
from .layer_split import Cut
from .pipeline_times import line_seconds, shares, simulated, sync_seconds
from .shapes import Row, Shape, shapes

SIMULATED = 8  # best plans by the closed form
MOST_MICRO_BATCHES = 1024


def plan(model: Model, fleet: Fleet, options: PlanOptions) -> FleetPlan | Plan:
    """The fastest plan found that fits: of a fleet whose parts do not differ, that of one cluster.

    Raises InfeasibleError where nothing fits, UsageError for options that a fleet does not have."""
    options.check()
    if options.pins or options.compress != "none":
        raise UsageError("a fleet is planned without --pin and --compress")
    same = fleet.same()
    if same is not None:
        return plan_cluster(model, same, options)
    return Search(model, fleet, options).run()


class Search:
    def __init__(self, model: Model, fleet: Fleet, options: PlanOptions) -> None:
        self.model, self.fleet, self.options = model, fleet, options
        item = max((ITEM_BYTES[p.type.dtype] for p in model.parameters if p.trainable), default=4)
        self.optimizer = optimizer_states(options.optimizer, item < 4, item)
        self.crews = Crews(model, fleet, self.optimizer, options.roles, options.memory_bytes)
        self.cuts: dict[tuple[Row, int], list[int] | None] = {}
        self.clock = Clock(options.time_limit_seconds)

    def run(self) -> FleetPlan | Plan:
        alone = [self.alone(part) for part in (*self.fleet.parts, self.fleet.as_slowest())]
        plain = [made for made in alone if made is not None]
        best = min((made.prediction.step_seconds for made in plain), default=inf)
        found: list[FleetPlan] = []
        ahead = self.promising()
        for bound, shape, samples in ahead:
            if bound >= best or self.clock.late():
                break
            made = self.made(shape, samples)
            if made is not None:
                found.append(made)
                best = min(best, made.step_seconds)
        found.sort(key=lambda made: made.step_seconds)
        mixed = min(map(self.simulate, found[:SIMULATED]), key=_step, default=None)
        if mixed is None and not plain:
            raise InfeasibleError(
                f"infeasible: {self.model.name} fits no mixture of the parts of {self.fleet}, none of "
                "them alone, nor all as if they were the smallest"
            )
        if mixed is None or any(_step(made) <= mixed.step_seconds for made in plain):
            return min(plain, key=_step)
        seconds = tuple(None if made is None else _step(made) for made in alone)
        bound = min(ahead[0][0], mixed.step_seconds)
        return replace(mixed, alone=seconds, bound_seconds=bound, complete=not self.clock.stopped)

    def alone(self, cluster: Cluster) -> Plan | None:
        """The plan of one part, or of all devices as if they were the slowest; None where none fits."""
        space = Space.of(self.model, cluster, self.options)
        space.clock = self.clock
        space.run()
        return assemble(space, min(space.fitting(), key=space.order)) if space.fitting() else None

    def samples(self) -> list[int]:
        """Sizes of micro-batches, the large ones first."""
        batch = self.model.batch
        sizes = [b for b in reversed(divisors(batch)) if batch // b <= MOST_MICRO_BATCHES]
        fixed = self.options.micro_batches
        return sizes if fixed is None else [b for b in sizes if batch // b == fixed]

    def promising(self) -> list[tuple[float, Shape, int]]:
        """Shapes and sizes of micro-batches by their bound."""
        made = []
        for samples in self.samples():
            one = [Kind(part, 1) for part in range(len(self.fleet.parts))]
            strength = [1 / self.crews.device_seconds(kind, samples) for kind in one]
            for shape in shapes(self.fleet, strength):
                if len(shape) <= self.model.batch // samples:
                    made.append((self.shape_bound(shape, samples), shape, samples))
        return sorted(made, key=lambda m: (m[0], -m[2], len(m[1])))

    def shape_bound(self, shape: Shape, samples: int) -> float:
        """Seconds that no plan of a shape is below."""
        rate = sum(k.width / self.crews.device_seconds(k, samples) for row in shape for k in row)
        return self.model.batch / samples / rate if rate else inf

    def made(self, shape: Shape, samples: int) -> FleetPlan | None:
        """The plan of a shape; None where a line cannot hold the model."""
        rows: list[list[Crew]] = []
        taken = [0] * len(self.fleet.parts)
        for row in shape:
            crews = self.row(row, samples, taken)
            if crews is None:
                return None
            rows.append(crews)
        count = self.model.batch // samples
        lines = [
            Line(n, tuple(crews), line_seconds(self.fleet, crews, n))
            for n, crews in zip(shares(self.fleet, rows, count), rows, strict=True)
        ]
        return self.plan(lines, samples)

    def row(self, row: Row, samples: int, taken: list[int]) -> list[Crew] | None:
        """The crews of a line, with the next devices of their parts."""
        cut = Cut(self.crews, row, samples)
        if (row, samples) not in self.cuts:
            bounds = cut.best()
            if bounds is not None:

                def cost(bounds: list[int]) -> float:
                    made = self.staffed(cut, bounds, [0] * len(taken))
                    count = max(1, self.model.batch // samples * len(row) // self.fleet.devices)
                    return inf if made is None else line_seconds(self.fleet, made, count)

                bounds = cut.refined(bounds, cost)
            self.cuts[row, samples] = bounds
        found = self.cuts[row, samples]
        return None if found is None else self.staffed(cut, found, taken)

    def staffed(self, cut: Cut, bounds: Sequence[int], taken: list[int]) -> list[Crew] | None:
        choices = cut.choices(bounds)
        if choices is None:
            return None
        crews = []
        for kind, choice in zip(cut.kinds, choices, strict=True):
            crews.append(
                Crew(kind.part, taken[kind.part], choice.strategy, choice.memory, choice.stage)
            )
            taken[kind.part] += kind.width
        return crews

    def plan(self, lines: Sequence[Line], samples: int) -> FleetPlan:
        working = tuple(line for line in lines if line.micro_batches)
        sync = sync_seconds(self.fleet, [line.crews for line in working])
        step = max(line.seconds for line in working) + sync
        model = self.model
        tokens = max((i.type.elements for i in model.inputs if i.batched), default=model.batch)
        return FleetPlan(
            model=model.name,
            model_digest=model.fingerprint(),
            fleet=self.fleet,
            global_batch=model.batch,
            micro_batch=samples,
            precision=self.options.precision or "as traced",
            optimizer=self.optimizer,
            lines=working,
            sync_seconds=sync,
            step_seconds=step,
            tokens_per_second=tokens / step,
            bound_seconds=0.0,
            calls=tuple(call.path for call in model.calls),
            memory_bytes=self.options.memory_bytes,
        )

    def simulate(self, made: FleetPlan) -> FleetPlan:
        """The plan with its lines simulated event by event."""
        lines = [replace(line, seconds=simulated(self.fleet, line)) for line in made.lines]
        return self.plan(lines, made.micro_batch)


def _step(made: FleetPlan | Plan) -> float:
    return made.prediction.step_seconds if isinstance(made, Plan) else made.step_seconds
