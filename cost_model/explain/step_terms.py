"""Explanation of a plan's step time: a tree of terms whose sum is the prediction.

    step ─┬─ forward   of the busiest stage, all micro-batches ── runs of layers ── kinds of operators
          ├─ backward  the same
          ├─ bubble    added by the pipeline: fill and drain, sends, waits
          └─ synchronisation of the stage where it takes longest, and the optimizer

It is computed from the workload stored in the plan, so it needs no model, and it can price the plan
on another cluster."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from ...ir.devices.cluster import Cluster
from ...ir.plan.groups.view import priced_view
from ...ir.plan.plan import Layers, Plan, Stage
from ...ir.plan.schedules.registry import schedule_text
from ...ir.plan.workload import CallWork, Collectives, Kernels, StrategyBytes
from ..communication.collective import CommGroup, send_leg
from ..communication.compressed_all_reduce import CompressedReductions, compressed_reductions
from ..communication.data_parallel import BatchAxes, axes_of
from ..communication.stage_transfer import (
    StageTransfer,
    boundary_links,
    plan_transfers,
    transfer_program,
)
from ..pipeline.closed_form import (
    chunk_shares,
    fill_drain_seconds,
    period_seconds,
    pipeline_seconds,
    steady_seconds,
)
from ..pipeline.group_pipeline import gradient_sum_seconds, groups_step
from ..pipeline.scheduled import CLOSED_FORMS, StageWork, scheduled_seconds
from ..quantity import amount
from .engine_terms import engine_terms, pipeline_of
from .exchange_terms import call_exchanges_term, compressed_terms, moved_terms, synchronisation
from .overlap_terms import OverlapTerms, calls_again, calls_of, overlap_terms
from .term import Term, codec_term, host_term, kernels_term, leg_term, priced_term, sent_term, total

KINDS = {
    "gemm": "matrix products",
    "pointwise": "elementwise",
    "reduce": "reductions",
    "move": "copies and look-ups",
}

SHARED_PROCESSORS = "derived: a rank that waits leaves its processor to others"
GROUP_SCHEDULE = "derived: 1F1B of device groups, simulated"
GROUP_TOTALS = "derived: to the first group of the calls and back"
SCHEDULE = "derived: 1F1B of the stages' times"
SIMULATED = "derived: simulation of the schedule's steps and transfers"


class StageTerms(msgspec.Struct, frozen=True):
    """A stage: `forward` and `backward` over a whole step, `sync` once."""

    forward: Term
    backward: Term
    sync: Term

    @property
    def busy_seconds(self) -> float:
        return self.forward.value + self.backward.value


def step_term(plan: Plan, cluster: Cluster | None = None) -> Term:
    """The step time as a tree; on another `cluster` of as many devices if given."""
    if plan.groups:
        return groups_term(plan)
    cluster = cluster or plan.cluster
    stages = [stage_times(plan, stage, cluster) for stage in plan.stages]
    busiest = max(range(len(stages)), key=lambda s: stages[s].busy_seconds)
    slowest = max(range(len(stages)), key=lambda s: stages[s].sync.value)
    return total(
        "step",
        [
            stages[busiest].forward,
            stages[busiest].backward,
            _bubble_term(plan, stages, busiest, cluster),
            stages[slowest].sync,
        ],
    )


def groups_term(plan: Plan) -> Term:
    """The step of a plan whose stages are device groups, as a tree."""
    stages = [stage_terms(plan, number) for number in range(len(plan.stages))]
    busiest = max(range(len(stages)), key=lambda s: stages[s].busy_seconds)
    step = groups_step(plan)
    waits = amount("w", max(0.0, step.timeline.makespan_seconds - stages[busiest].busy_seconds))
    added = gradient_sum_seconds(plan.cluster, plan.groups, plan.stages)
    totals = [amount("g", seconds) for seconds in added]
    ends = [
        total(
            f"synchronisation of stage {s}",
            [
                terms.sync,
                priced_term("gradients of the same calls elsewhere", totals[s], GROUP_TOTALS),
            ],
        )
        for s, terms in enumerate(stages)
    ]
    return total(
        "step",
        [
            stages[busiest].forward,
            stages[busiest].backward,
            total("bubble", [priced_term("fill, drain, sends and waits", waits, GROUP_SCHEDULE)]),
            max(ends, key=lambda term: term.value),
        ],
    )


def stage_terms(plan: Plan, number: int) -> StageTerms:
    """Every term of stage `number` of a plan."""
    if not plan.groups:
        return stage_times(plan, plan.stages[number], plan.cluster)
    view = priced_view(plan, number)
    return stage_times(view.plan, view.plan.stages[view.stage], view.plan.cluster)


def _bubble_term(plan: Plan, stages: list[StageTerms], busiest: int, cluster: Cluster) -> Term:
    """Seconds of the pipeline beyond the busiest stage's own work."""
    if len(stages) == 1:
        return total("bubble", [])
    if plan.schedule not in CLOSED_FORMS:
        return _simulated_bubble(plan, stages, busiest, cluster)
    count, (chunks, hides_sends) = plan.micro_batches, pipeline_of(plan)
    seconds = [stage.busy_seconds / count for stage in stages]
    busy = [amount("b" if s == busiest else "b_w", x) for s, x in enumerate(seconds)]
    transfers = plan_transfers(plan, cluster)
    sends = [transfer.seconds for transfer in transfers]
    shares = [chunk_shares(plan, stage) for stage in plan.stages]
    edge_shares = [(fractions[0], fractions[-1]) for fractions in shares]
    period = max(seconds) if hides_sends else period_seconds(seconds, sends, chunks)
    beside = [amount("u", x) for x in fill_drain_seconds(seconds, edge_shares)]
    steps = amount("m", count)
    worked, waiting = steady_seconds(busy, beside, steps, amount("g", period))
    parts = [
        priced_term("filling and draining", worked - steps * busy[busiest], SCHEDULE),
        _sends_term(plan, transfers, cluster),
        priced_term("waiting for other stages", waiting, SCHEDULE),
    ]
    shared = cluster.device.ranks_per_processor
    if shared > 1:
        pipeline = pipeline_seconds(
            seconds, sends, count, chunks, ranks_per_processor=shared, edge_shares=edge_shares
        )
        explained = count * seconds[busiest] + sum(part.value for part in parts)
        saved = amount("t_s", pipeline - explained)
        parts.append(priced_term("processors shared by waiting ranks", saved, SHARED_PROCESSORS))
    return total("bubble", parts)


def _simulated_bubble(plan: Plan, stages: list[StageTerms], busiest: int, cluster: Cluster) -> Term:
    """What the simulated pipeline takes beyond the busiest stage's own work, sends included."""
    count = plan.passes
    work = [
        StageWork(
            terms.forward.value / count,
            terms.backward.value / count,
            stage.weights_share * terms.backward.value / count,
            chunk_shares(plan, stage),
        )
        for stage, terms in zip(plan.stages, stages, strict=True)
    ]
    sends = [transfer.seconds for transfer in plan_transfers(plan, cluster)]
    shared = cluster.device.ranks_per_processor
    pipeline = scheduled_seconds(plan.schedule, work, sends, plan.micro_batches, shared)
    waiting = amount("t_w", pipeline - stages[busiest].busy_seconds)
    name = f"waiting and sends, {schedule_text(plan.schedule, plan.chunks_per_stage)}"
    return total("bubble", [priced_term(name, waiting, SIMULATED)])


def _sends_term(plan: Plan, transfers: list[StageTransfer], cluster: Cluster) -> Term:
    """Transfers of the first micro-batch over every boundary, in both directions."""
    legs = Counter(
        send_leg(transfer.sent_bytes, link)
        for transfer, link in zip(transfers, boundary_links(len(transfers), cluster), strict=True)
        if transfer.sent_bytes
    )
    sends = [leg_term(leg, 2 * boundaries, cluster) for leg, boundaries in legs.items()]
    program = transfer_program(plan)
    if program is None:
        return total("sends between stages", sends)
    codec = 2 * sum(transfer.codec_seconds for transfer in transfers)
    return total(
        f"sends between stages as {program.name}",
        [total("transfer", sends), codec_term(amount("k_c", codec), cluster.device)],
    )


def stage_times(plan: Plan, stage: Stage, cluster: Cluster) -> StageTerms:
    """Every term of one stage."""
    times, layers = plan.passes, stage_layers(plan, stage)
    axes = [
        (share, axes_of(plan, share.strategy, share.bytes.item_bytes, cluster))
        for share in stage.bytes_by_strategy
    ]
    resharding = priced_term(
        "resharding",
        amount("m", times) * amount("t", stage.resharding_seconds) / 2,
        "derived: collectives between strategies",
    )
    gathered, scattered = "all_gather of weights", "reduce_scatter of gradients"
    gathers, again = (
        [call_exchanges_term(gathered, s, a, c(s, a), a.call_gathers, times) for s, a in axes]
        for c in (calls_of, calls_again)
    )
    scatters = [
        call_exchanges_term(scattered, s, a, calls_of(s, a), a.call_scatters, times)
        for s, a in axes
    ]
    moved = [moved_terms(s, a, times, cluster) for s, a in axes]
    forward, backward = (
        [layers_term(plan, x, direction, cluster) for x in layers]
        for direction in ("forward", "backward")
    )
    sync = [t for s, a in axes for t in synchronisation(plan, s, a, cluster)]
    saved = list(_saved_terms(plan, layers, axes, (forward, backward), moved))
    return StageTerms(
        total(
            "forward",
            [
                *forward,
                *gathers,
                *(t for parts in moved for t in parts[0]),
                *(t for s in saved for t in s.forward),
                resharding,
            ],
        ),
        total(
            "backward",
            [
                *backward,
                *again,
                *scatters,
                *(t for parts in moved for t in parts[1]),
                *(t for s in saved for t in s.backward),
                resharding,
            ],
        ),
        total(
            "synchronisation",
            [*sync, *(t for s in saved for t in s.sync), *_batch_only_terms(plan, cluster)],
        ),
    )


def _saved_terms(
    plan: Plan,
    layers: Sequence[Layers],
    axes: Sequence[tuple[StrategyBytes, BatchAxes]],
    halves: tuple[list[Term], list[Term]],
    moved: Sequence[tuple[list[Term], list[Term]]],
) -> Iterator[OverlapTerms]:
    """What exchanges beside compute save, strategy by strategy (not as others run). `halves`: terms of
    `layers` in forward and in backward; `moved`: what exchanges add to either."""
    for (share, along), parts in zip(axes, moved, strict=True):
        mine = [n for n, x in enumerate(layers) if plan.strategy_of(x) == share.strategy]
        seconds = [
            (sum(terms[n].value for n in mine) + sum(t.value for t in part)) / plan.passes
            for terms, part in zip(halves, parts, strict=True)
        ]
        yield overlap_terms(plan, share, along, seconds[0], seconds[1])


def _batch_only_terms(plan: Plan, cluster: Cluster) -> Iterator[Term]:
    """Terms of the calls that run once per step, on the batch alone."""
    for layers in plan.layers:
        if layers.batch_only:
            reductions = compressed_reductions(plan, plan.strategy_of(layers), cluster)
            name, count = f"{label(plan, layers)}, once", layers.last - layers.first
            yield half_term(name, layers.forward, count, cluster, reductions, plan.engine)


def stage_layers(plan: Plan, stage: Stage) -> list[Layers]:
    """The layers of a stage that run for every micro-batch."""
    return [x for x in plan.layers if stage.contains(x.first) and not x.batch_only]


def layers_term(plan: Plan, layers: Layers, direction: str, cluster: Cluster) -> Term:
    """Forward or backward of equal layers over a step."""
    work: CallWork = getattr(layers, direction)
    times = (layers.last - layers.first) * plan.passes
    reductions = compressed_reductions(plan, plan.strategy_of(layers), cluster)
    return half_term(label(plan, layers), work, times, cluster, reductions, plan.engine)


def label(plan: Plan, layers: Layers) -> str:
    """`block ×4`."""
    name, count = plan.shardings[layers.sharding].function, layers.last - layers.first
    return f"{name} ×{count}" if count > 1 else name


def half_term(
    name: str,
    half: CallWork,
    times: int,
    cluster: Cluster,
    reductions: CompressedReductions | None = None,
    engine: str = "plait",
) -> Term:
    """Forward or backward, `times` times, by kind of operator and collective; `reductions` are the
    compressed all-reduces."""
    kinds: dict[str, list[Kernels]] = defaultdict(list)
    for kernels in half.kernels:
        kinds[kernels.work].append(kernels)
    work = [
        kernels_term(KINDS.get(kind, kind), members, times, cluster.device)
        for kind, members in kinds.items()
    ]
    sent = [_reduction_term(sent, times, cluster, reductions) for sent in half.collectives]
    parts = [*work, *sent, *engine_terms(engine, half, work, sent, times, cluster)]
    beside = sum(part.value for part in parts)
    return total(name, [*parts, host_term(half.host_bytes, beside, times, cluster.device)])


def _reduction_term(
    sent: Collectives, times: int, cluster: Cluster, reductions: CompressedReductions | None
) -> Term:
    """Equal collectives, compressed or not."""
    key = sent.axis, sent.amount_bytes, sent.item_bytes, CommGroup(sent.size, sent.stride)
    priced = reductions.price(*key) if reductions is not None else None
    if reductions is None or priced is None:
        return sent_term(sent, times, cluster)
    name = f"{sent.kind} over {sent.axis} as {reductions.programs[sent.axis].name}"
    return total(name, compressed_terms(priced, sent.count * times, cluster))
