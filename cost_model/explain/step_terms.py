"""Explanation of a plan's step time: a tree of terms whose sum is the prediction.

    step ─┬─ forward   of the busiest stage, all micro-batches ── runs of layers ── kinds of operators
          ├─ backward  the same
          ├─ bubble    added by the pipeline: fill and drain, sends, waits
          └─ synchronisation of the stage where it takes longest, and the optimizer

It is computed from the workload stored in the plan, so it needs no model, and it can price the plan
on another cluster."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import msgspec

from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Layers, Plan, Stage
from ...ir.plan.workload import CallWork, Collectives, StrategyBytes
from ..communication.collective import collective_legs, send_leg
from ..communication.compressed_all_reduce import CompressedReductions, compressed_reductions
from ..communication.data_parallel import AxisGroups, BatchAxes, CompressionSubject, axes_of
from ..communication.stage_transfer import (
    StageTransfer,
    boundary_links,
    transfer_program,
    plan_transfers,
)
from ..pipeline.closed_form import (
    fill_drain_seconds,
    period_seconds,
    chunk_shares,
    pipeline_seconds,
)
from .term import Term, host_term, kernels_term, leg_term, legs_term, sent_term, stream_term, total

KINDS = {
    "gemm": "matrix products",
    "pointwise": "elementwise",
    "reduce": "reductions",
    "move": "copies and look-ups",
}

TRANSFER = "derived: bytes of codes and scales, at the links' latencies and bandwidths"
CODEC = "derived: bytes and instructions of the program's kernels, at the device's rates"
SHARED_PROCESSORS = "derived: a rank that waits leaves its processor to others"
SCHEDULE = "derived: 1F1B of the stages' times"


class StageTimes(msgspec.Struct, frozen=True):
    """A stage: `forward` and `backward` over a whole step, `sync` once."""

    forward: Term
    backward: Term
    sync: Term

    @property
    def busy_seconds(self) -> float:
        return self.forward.value + self.backward.value


def step_term(plan: Plan, cluster: Cluster | None = None) -> Term:
    """The step time as a tree; on another `cluster` of as many devices if given."""
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


def _bubble_term(plan: Plan, stages: list[StageTimes], busiest: int, cluster: Cluster) -> Term:
    """Seconds of the pipeline beyond the busiest stage's own work."""
    count, chunks = plan.micro_batches, plan.chunks_per_stage
    if len(stages) == 1:
        return total("bubble", [])
    busy = [stage.busy_seconds / count for stage in stages]
    transfers = plan_transfers(plan, cluster)
    sends = [transfer.seconds for transfer in transfers]
    period = period_seconds(busy, sends, chunks)
    shares = [chunk_shares(plan, stage) for stage in plan.stages]
    edge_shares = [(fractions[0], fractions[-1]) for fractions in shares]
    beside = fill_drain_seconds(busy, edge_shares)
    last = max(range(len(stages)), key=lambda s: count * busy[s] + beside[s])
    symbols = {"u": beside[last], "b": busy[busiest], "b_w": busy[last], "g": period, "m": count}
    fill = Term(
        "filling and draining",
        symbols["u"] - count * (symbols["b"] - symbols["b_w"]),
        "s",
        "u - m*(b - b_w)",
        SCHEDULE,
        {x: symbols[x] for x in ("u", "m", "b", "b_w")},
    )
    wait = Term(
        "waiting for other stages",
        (count - 1) * (period - symbols["b"]),
        "s",
        "(m - 1)*(g - b)",
        SCHEDULE,
        {x: symbols[x] for x in "mgb"},
    )
    parts = [fill, _sends_term(plan, transfers, cluster), wait]
    shared = cluster.device.ranks_per_processor
    if shared > 1:
        pipeline = pipeline_seconds(
            busy, sends, count, chunks, ranks_per_processor=shared, edge_shares=edge_shares
        )
        explained = count * symbols["b"] + sum(part.value for part in parts)
        parts.append(
            Term(
                "processors shared by waiting ranks",
                pipeline - explained,
                "s",
                "t_s",
                SHARED_PROCESSORS,
                {"t_s": pipeline - explained},
            )
        )
    return total("bubble", parts)


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
        [total("transfer", sends), Term("codec", codec, "s", "k_c", CODEC, {"k_c": codec})],
    )


def stage_times(plan: Plan, stage: Stage, cluster: Cluster) -> StageTimes:
    """Every term of one stage."""
    times, layers = plan.micro_batches, stage_layers(plan, stage)
    axes = [
        (share, axes_of(plan, share.strategy, share.bytes.item_bytes, cluster))
        for share in stage.bytes_by_strategy
    ]
    resharding = Term(
        "resharding",
        times * stage.resharding_seconds / 2,
        "s",
        "m*t/2",
        "derived: collectives between strategies",
        {"m": times, "t": stage.resharding_seconds},
    )
    gathers = [_per_call_term("weights", "all_gather", s, a, times) for s, a in axes]
    scatters = [_per_call_term("gradients", "reduce_scatter", s, a, times) for s, a in axes]
    added = [_accumulation_term(s, a, times, cluster) for s, a in axes]
    batch_only = [
        half_term(
            f"{label(plan, x)}, once",
            x.forward,
            x.last - x.first,
            cluster,
            compressed_reductions(plan, plan.strategy_of(x), cluster),
        )
        for x in plan.layers
        if x.batch_only
    ]
    return StageTimes(
        total(
            "forward",
            [*(layers_term(plan, x, "forward", cluster) for x in layers), *gathers, resharding],
        ),
        total(
            "backward",
            [
                *(layers_term(plan, x, "backward", cluster) for x in layers),
                *gathers,
                *scatters,
                *added,
                resharding,
            ],
        ),
        total(
            "synchronisation",
            [t for s, a in axes for t in _synchronisation(plan, s, a, cluster)] + batch_only,
        ),
    )


def stage_layers(plan: Plan, stage: Stage) -> list[Layers]:
    """The layers of a stage that run for every micro-batch."""
    return [x for x in plan.layers if stage.contains(x.first) and not x.batch_only]


def layers_term(plan: Plan, layers: Layers, direction: str, cluster: Cluster) -> Term:
    """Forward or backward of equal layers over a step."""
    work: CallWork = getattr(layers, direction)
    times = (layers.last - layers.first) * plan.micro_batches
    reductions = compressed_reductions(plan, plan.strategy_of(layers), cluster)
    return half_term(label(plan, layers), work, times, cluster, reductions)


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
) -> Term:
    """Forward or backward, `times` times, by kind of operator and collective; `reductions` are the
    compressed all-reduces."""
    kinds = defaultdict(list)
    for kernels in half.kernels:
        kinds[kernels.work].append(kernels)
    work = [
        kernels_term(KINDS.get(kind, kind), members, times, cluster.device)
        for kind, members in kinds.items()
    ]
    parts = [
        *work,
        *(_reduction_term(sent, times, cluster, reductions) for sent in half.collectives),
    ]
    beside = sum(part.value for part in parts)
    return total(name, [*parts, host_term(half.host_bytes, beside, times, cluster.device)])


def _reduction_term(
    sent: Collectives, times: int, cluster: Cluster, reductions: CompressedReductions | None
) -> Term:
    """Equal collectives, compressed or not."""
    key = sent.axis, sent.amount_bytes, sent.item_bytes, sent.size, sent.stride
    priced = reductions.price(*key) if reductions is not None else None
    if reductions is None or priced is None:
        return sent_term(sent, times, cluster)
    count = sent.count * times
    name = f"{sent.kind} over {sent.axis} as {reductions.programs[sent.axis].name}"
    return total(name, compressed_terms(priced.transfer_seconds, priced.codec_seconds, count))


def compressed_terms(transfer_seconds: float, codec_seconds: float, times: int) -> list[Term]:
    """Transfer and codec terms of `times` compressed exchanges."""
    return [
        Term(
            "transfer",
            times * transfer_seconds,
            "s",
            "n*w_c",
            TRANSFER,
            {"n": times, "w_c": transfer_seconds},
        ),
        Term(
            "codec", times * codec_seconds, "s", "n*k_c", CODEC, {"n": times, "k_c": codec_seconds}
        ),
    ]


def _per_call_term(
    subject: CompressionSubject, kind: str, share: StrategyBytes, axes: BatchAxes, times: int
) -> Term:
    """Weights gathered before a call, or gradients scattered after it."""
    needed = "parameter" if subject == "weights" else "gradient"
    chosen = axes.shard_axes if needed in axes.sharded_kinds else []
    scale = 1 if subject == "weights" else axes.gradient_scale
    small = share.bytes.small_tensor_bytes / max(share.bytes.trained_bytes, 1)
    return total(
        f"{kind} of {subject}",
        [
            term
            for amount, calls in share.bytes.call_weight_bytes
            for term in _exchange_terms(
                subject,
                kind,
                axes.sharded_bytes(amount) * scale,
                chosen,
                axes,
                small,
                calls * times,
            )
        ],
    )


def _accumulation_term(share: StrategyBytes, axes: BatchAxes, times: int, cluster: Cluster) -> Term:
    amount = 2 * share.bytes.trained_bytes * axes.gradient_scale * axes.local_fraction("gradient")
    count = times if times > 1 else 0
    return stream_term("adding up gradients", "accumulate", amount, count, cluster.device)


def _synchronisation(
    plan: Plan, share: StrategyBytes, axes: BatchAxes, cluster: Cluster
) -> Iterator[Term]:
    """Terms once per step: gradient reduction, optimizer step, gather of updated weights."""
    weight_bytes, part = (
        share.bytes.trained_bytes,
        axes.gradient_scale * axes.local_fraction("optimizer"),
    )
    small = share.bytes.small_tensor_bytes / max(weight_bytes, 1)
    yield from _exchange_terms(
        "gradients", "all_reduce", weight_bytes * part, axes.replica_axes, axes, small
    )
    for axis in axes.model_axes:
        yield from _collective_terms(
            "all_reduce", share.bytes.partial_gradient_bytes[axis[0]] * part, [axis], 1, cluster
        )
    if "optimizer" in axes.sharded_kinds and "gradient" not in axes.sharded_kinds:
        yield from _exchange_terms(
            "gradients",
            "reduce_scatter",
            weight_bytes * axes.gradient_scale,
            axes.shard_axes,
            axes,
            small,
        )
    yield from _collective_terms(
        "all_reduce",
        axes.replicated_bytes(weight_bytes) * axes.gradient_scale,
        axes.remainder_axes,
        1,
        cluster,
    )
    if "optimizer" in axes.sharded_kinds and "parameter" not in axes.sharded_kinds:
        yield from _exchange_terms(
            "weights", "all_gather", weight_bytes, axes.shard_axes, axes, small
        )
    states = plan.optimizer.states
    touched = 2 * axes.local_bytes(weight_bytes * (2 + states), "optimizer")
    yield stream_term("optimizer", plan.optimizer.name, touched, 1, cluster.device)


def _exchange_terms(
    subject: CompressionSubject,
    kind: str,
    amount: float,
    chosen: AxisGroups,
    axes: BatchAxes,
    small: float,
    times: int = 1,
) -> Iterator[Term]:
    """Terms of a collective of gradients or weights, compressed along the axes with a program."""
    for axis in chosen:
        priced = axes.compressed_cost(subject, amount, axis, small)
        if priced is None:
            yield from _collective_terms(kind, amount, [axis], times, axes.cluster)
            continue
        name = f"{kind} over {axis[0]} as {axes.program_name(subject, axis[0])}"
        yield total(name, compressed_terms(priced.transfer_seconds, priced.codec_seconds, times))


def _collective_terms(
    kind: str, amount: float, axes: AxisGroups, times: int, cluster: Cluster
) -> Iterator[Term]:
    for role, size, stride in axes:
        legs = collective_legs(kind, amount, size, stride, cluster)
        yield legs_term(f"{kind} over {role}", legs, times, cluster)
