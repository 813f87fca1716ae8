"""The graph of a plan: equal layers fold over stages and chunks, and open again by stage or by chunk.
Pipelines of device groups that do the same are one row of boxes.

entry ── model.layers.0–125 ×126 ── exit            closed: 16 stages × 8 chunks in one box
             └ stage 0: layers 0, 16, … ×8  stage 1: layers 1, 17, … ×8  ...      by stage
             └ chunk 0: layers 0–15  chunk 1: layers 16–31  ...                   by chunk
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from msgspec.structs import replace

from ....cost_model.communication.stage_transfer import plan_transfers
from ....ir.model.mesh import MICRO
from ....ir.model.model import Model
from ....ir.plan.groups.schedule import neighbours, tiles_of
from ....ir.plan.plan import Layers, Plan
from ....ir.text.units import figure, seconds
from ..call_names import ranges, span_name
from ..from_model import data_edges
from ..layout import arrange
from ..module_graph import Inside
from ..report import Box, BoxGraph, Edge, Facts

LONGEST_PATTERN = (
    4  # functions of a pattern of layers that repeats, as in dense, expert, dense, expert
)
Runs = list[Layers]


class PlanGraph:
    """The graphs of a plan, by key: `""` at the top, `0` what its first box opens to."""

    def __init__(self, plan: Plan, model: Model | None, insides: dict[int, Inside]) -> None:
        self.plan, self.insides = plan, insides
        self.graphs: dict[str, BoxGraph] = {}
        for inside in insides.values():
            self.graphs.update(inside.graphs)
        self.sent_bytes = (
            [stage.transfer_bytes for stage in plan.stages]
            if plan.groups
            else [transfer.sent_bytes for transfer in plan_transfers(plan)]
        )
        self.total_seconds = sum(map(busy_seconds, plan.layers))
        groups = folded(plan)
        boxes = [self.box(runs, f"run {n}") for n, runs in enumerate(groups)]
        self.graphs[""] = arrange(boxes, self.edges(groups, model))

    def box(self, runs: Runs, key: str) -> Box:
        """All these layers as one box; several runs of them open."""
        if len(runs) == 1:
            return self.run_box(runs[0])
        stages = self.stages(runs)
        if self.plan.groups and len(stages) > 1:
            return self.same_box(runs, stages, key)
        self.open(runs, stages, key)
        return self.summary(runs, key, span_name(self.paths(runs)), self.spread(runs, stages))

    def same_box(self, runs: Runs, stages: Sequence[int], key: str) -> Box:
        """The box of layers that several device groups run alike, each for its own micro-batches."""
        one = self.box([x for x in runs if self.stage_of(x) == stages[0]], key)
        return replace(
            one,
            about=", ".join(filter(None, (f"stages {ranges(stages)}", one.about))),
            stage=-1,
            facts=(
                ("stages", ranges(stages)),
                *(f for f in one.facts if f[0] != "share of all stages"),
                ("share of all stages", self.share(runs)),
            ),
        )

    def open(self, runs: Runs, stages: Sequence[int], key: str) -> None:
        """The graphs that a box of several runs opens to."""
        if len(stages) == 1:
            boxes = [self.run_box(x) for x in runs]
            self.graphs[key] = arrange(boxes, chain(len(boxes)))
            return
        chunks = self.plan.chunks_per_stage > 1
        by_chunk = f"{key} by chunk"
        self.graphs[key] = self.divided(
            runs, key, "stage", self.stage_of, by_chunk if chunks else ""
        )
        if chunks:
            self.graphs[by_chunk] = self.divided(runs, by_chunk, "chunk", self.chunk_of, key)

    def divided(
        self, runs: Runs, key: str, by: str, number_of: Callable[[Layers], int], otherwise: str
    ) -> BoxGraph:
        """A box for every stage, or for every chunk, of these runs."""
        parts = {n: list(g) for n, g in groupby(sorted(runs, key=number_of), number_of)}
        boxes: list[Box] = []
        for number, part in parts.items():
            name, inside = f"{by} {number}", f"{key}, {number}"
            if len(part) > 1:
                members = [self.run_box(x) for x in part]
                self.graphs[inside] = arrange(members, chain(len(members)))
            numbers = span_name(self.paths(part))
            box = self.summary(
                part, inside if len(part) > 1 else self.inside(part[0]), name, numbers
            )
            boxes.append(box)
        sent = {i: self.sent(n) for i, n in enumerate(parts)} if by == "stage" else {}
        edges = [Edge(i, i + 1, sent.get(i, "")) for i in range(len(boxes) - 1)]
        graph = arrange(boxes, edges)
        return BoxGraph(graph.boxes, graph.edges, name=f"by {by}", otherwise=otherwise)

    def summary(self, runs: Runs, inside: str, label: str, about: str) -> Box:
        """A box for several runs; its times are means over its calls."""
        plan, calls = self.plan, sum(x.last - x.first for x in runs)
        stages = self.stages(runs)
        strategies = [plan.strategy_of(x) for x in runs]
        functions = dict.fromkeys(plan.shardings[x.sharding].function for x in runs)
        forward, backward = (
            sum(getattr(x, f"{half}_seconds") * (x.last - x.first) for x in runs) / calls
            for half in ("forward", "backward")
        )
        known = all(x.sharding in self.insides for x in runs)
        sent = sum(self.insides[x.sharding].communication_seconds for x in runs) if known else -1.0
        return Box(
            label=label,
            kind="call",
            times=calls,
            about=about,
            stage=stages[0] if len(stages) == 1 else -1,
            strategy=" | ".join(dict.fromkeys(map(str, strategies))),
            note=self.note(runs),
            forward_seconds=forward,
            backward_seconds=backward,
            communication_seconds=sent / len(runs) if known else -1.0,
            facts=(
                ("function", ", ".join(functions)),
                ("modules", span_name(self.paths(runs))),
                ("stages", ranges(stages)),
                ("strategy", " | ".join(dict.fromkeys(map(str, strategies)))),
                ("activations", self.actions(runs)),
                ("share of all stages", self.share(runs)),
            ),
            inside=inside,
        )

    def run_box(self, x: Layers) -> Box:
        """One run of equal layers of a stage."""
        plan, function = self.plan, self.plan.shardings[x.sharding].function
        inside = self.insides.get(x.sharding)
        label = span_name(self.paths([x]))
        about = (function if function != label else "", "once per step" if x.batch_only else "")
        return Box(
            label=label,
            kind="call",
            times=x.last - x.first,
            about=", ".join(filter(None, about)),
            stage=self.stage_of(x),
            strategy=str(plan.strategy_of(x)),
            note=self.note([x]),
            forward_seconds=x.forward_seconds,
            backward_seconds=x.backward_seconds,
            communication_seconds=inside.communication_seconds if inside else -1.0,
            facts=(
                ("function", function),
                ("calls", ranges(range(x.first, x.last))),
                ("strategy", str(plan.strategy_of(x))),
                ("activations", str(x.memory)),
                ("forward each", seconds(x.forward_seconds)),
                ("backward each", seconds(x.backward_seconds)),
                ("share of all stages", self.share([x])),
                *self.splits(x),
                *self.compressed([x]),
            ),
            inside=self.inside(x),
        )

    def inside(self, x: Layers) -> str:
        return str(x.sharding) if x.sharding in self.insides else ""

    def paths(self, runs: Runs) -> list[str]:
        return [plan_path(self.plan, i) for x in runs for i in range(x.first, x.last)]

    def stages(self, runs: Runs) -> list[int]:
        return sorted({self.stage_of(x) for x in runs})

    def stage_of(self, x: Layers) -> int:
        return self.plan.stage_of_layers(x)

    def chunk_of(self, x: Layers) -> int:
        """The model chunk of its stage that a run belongs to."""
        chunks = self.plan.stages[self.stage_of(x)].model_chunks
        return next(c for c, (first, last) in enumerate(chunks) if first <= x.first < last)

    def spread(self, runs: Runs, stages: Sequence[int]) -> str:
        """`in 16 stages × 8 chunks`."""
        chunks = len({self.chunk_of(x) for x in runs})
        if len(stages) == 1:
            return f"{len(runs)} runs of equal layers"
        return f"in {len(stages)} stages" + (f" × {chunks} chunks" if chunks > 1 else "")

    def share(self, runs: Runs) -> str:
        part = sum(map(busy_seconds, runs))
        return f"{100 * part / self.total_seconds:.1f} %" if self.total_seconds else "0 %"

    def actions(self, runs: Runs) -> str:
        """`keep`, `keep ×80, recompute ×46`."""
        counts: Counter[str] = Counter()
        for x in runs:
            counts[str(x.memory)] += x.last - x.first
        return ", ".join(counts) if len(counts) == 1 else _counted(counts)

    def note(self, runs: Runs) -> str:
        """What happens to activations beside keeping them, and which messages are compressed."""
        trained = [x for x in runs if not x.batch_only]
        actions = self.actions(trained)
        parts = [actions] if trained and actions != "keep" else []
        programs = dict.fromkeys(program for _, program in self.compressed(runs))
        return " · ".join([*parts, *(f"sent as {p}" for p in programs)])

    def compressed(self, runs: Runs) -> Facts:
        strategies = {self.plan.strategy_of(x) for x in runs if not x.batch_only}
        return tuple(
            (f"{c.subject} over {c.role}", c.program)
            for c in self.plan.compression
            if c.strategy in strategies
        )

    def splits(self, x: Layers) -> Facts:
        """Numbers of operators that each mesh axis splits."""
        sharding = self.plan.shardings[x.sharding]
        facts: list[tuple[str, str]] = []
        for i, axis in enumerate(sharding.mesh.axes):
            if axis.size > 1 and axis.name != MICRO:
                split = sum(not splits[i].replicates for splits in sharding.op_splits)
                text = f"{split} of {len(sharding.op_splits)} operators"
                facts.append((f"{axis.name} splits", text))
        return tuple(facts)

    def sent(self, stage: int) -> str:
        amount = self.sent_bytes[stage] if stage < len(self.sent_bytes) else 0
        return megabytes(amount) if amount else ""

    def edges(self, groups: list[Runs], model: Model | None) -> list[Edge]:
        """Data between groups; where a stage ends, with the bytes that a device sends on."""
        spans = [(runs[0].first, runs[-1].last) for runs in groups]
        if self.plan.groups:
            return self.group_edges(groups)
        batch_only = model.batch_only_calls() if model else frozenset[int]()
        edges = data_edges(model, spans) if model else chain(len(spans))
        labelled: list[Edge] = []
        for edge in edges:
            one, other = groups[edge.source][-1], groups[edge.target][0]
            crosses = self.stage_of(one) != self.stage_of(other) and one.first not in batch_only
            text = self.sent(self.stage_of(one)) if crosses and not one.batch_only else ""
            labelled.append(Edge(edge.source, edge.target, text))
        return labelled

    def group_edges(self, groups: list[Runs]) -> list[Edge]:
        """Data from every device group's layers to those that begin where they end."""
        joined = [
            {n, *near.after.values()} for n, near in enumerate(neighbours(tiles_of(self.plan)))
        ]
        edges: list[Edge] = []
        for i, source in enumerate(groups):
            for j, target in enumerate(groups):
                if source[-1].last != target[0].first:
                    continue
                ends, begins = self.stages(source), self.stages(target)
                if any(not joined[stage].isdisjoint(begins) for stage in ends):
                    edges.append(Edge(i, j, "" if ends == begins else self.sent(ends[0])))
        return edges


def plan_path(plan: Plan, call: int) -> str:
    """The module path of a call; its function where the plan has none."""
    path = plan.calls[call] if call < len(plan.calls) else ""
    return path or plan.shardings[plan.layers_of(call).sharding].function


def busy_seconds(x: Layers) -> float:
    return (x.forward_seconds + x.backward_seconds) * (x.last - x.first)


def chain(count: int) -> list[Edge]:
    return [Edge(i, i + 1) for i in range(count - 1)]


def folded(plan: Plan) -> list[Runs]:
    """Runs of layers in groups: of one function, or of a short pattern of functions that repeats."""
    by_function = [
        list(g)
        for _, g in groupby(plan.layers, lambda x: (_function(plan, x), x.batch_only, x.stage))
    ]
    if plan.groups:
        return _same_of_groups(plan, by_function)
    return list(_patterns(plan, by_function))


def _same_of_groups(plan: Plan, groups: list[Runs]) -> list[Runs]:
    """Runs of the device groups of one kind that make the same decisions about the same calls."""
    same: dict[object, Runs] = {}
    for runs in groups:
        stage = plan.stage_of_layers(runs[0])
        decisions = tuple(
            (x.first, x.last, x.forward_seconds, x.backward_seconds, *_decision_of(plan)(x))
            for x in runs
        )
        same.setdefault((plan.groups[stage].part, decisions), []).extend(runs)
    return list(same.values())


def _patterns(plan: Plan, groups: list[Runs]) -> Iterator[Runs]:
    names = [_function(plan, group[0]) for group in groups]
    at = 0
    while at < len(groups):
        length, times = _longest_repeat(names[at:])
        yield [x for group in groups[at : at + length * times] for x in group]
        at += length * times


def _longest_repeat(names: Sequence[str]) -> tuple[int, int]:
    """The length and number of times of the pattern that covers most of what `names` begin with."""
    best = (1, 1)
    for length in range(2, LONGEST_PATTERN + 1):
        times = 1
        while names[:length] == names[length * times : length * (times + 1)] and names[:length]:
            times += 1
        if times > 1 and length * times > best[0] * best[1]:
            best = (length, times)
    return best


def _function(plan: Plan, x: Layers) -> str:
    return plan.shardings[x.sharding].function


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in counts.items())


def megabytes(amount: int) -> str:
    if amount < 999.5e6:
        return f"{figure(amount / 1e6)} MB"
    return f"{figure(amount / 1e9)} GB"


def strategy_rows(plan: Plan) -> Iterable[tuple[str, ...]]:
    """A line per group of equal decisions: modules, count, stages, strategy, activations, times."""
    for runs in folded(plan):
        key = _decision_of(plan)
        for _, same in groupby(sorted(runs, key=key), key):
            part = sorted(same, key=lambda x: x.first)
            calls = dict.fromkeys(i for x in part for i in range(x.first, x.last))
            paths = [plan_path(plan, i) for i in calls]
            stages = sorted({plan.stage_of_layers(x) for x in part})
            yield (
                span_name(paths),
                str(len(paths)),
                ranges(stages),
                str(plan.strategy_of(part[0])),
                str(part[0].memory),
                seconds(part[0].forward_seconds),
                seconds(part[0].backward_seconds),
            )


def _decision_of(plan: Plan) -> Callable[[Layers], tuple[str, str, str]]:
    return lambda x: (_function(plan, x), str(plan.strategy_of(x)), str(x.memory))
