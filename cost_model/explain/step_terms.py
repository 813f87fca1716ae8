"""Why a plan costs what it costs: a tree of terms whose sum is the prediction.

    step ─┬─ forward   of the busiest stage, all micro-batches ── runs of layers ── kinds of operators
          ├─ backward  the same
          ├─ bubble    what the pipeline adds to that stage: first pass, sends, waits
          └─ synchronisation of the stage where it takes longest, and the optimizer

It is made from the amounts that a plan carries, so no model is needed, and another cluster can be
asked what the same plan would cost there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import msgspec

from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Layers, Plan, Stage
from ...ir.plan.workload import Piece, Sent, Share
from ..communication.collective import collective_legs, send_leg
from ..communication.compressed_all_reduce import Reductions, reductions_of
from ..communication.data_parallel import Axes, BatchAxes, Subject, axes_of
from ..communication.stage_transfer import Hop, boundary_links, hop_program, plan_hops
from ..pipeline.closed_form import beside_seconds, period_seconds, piece_shares, pipeline_seconds
from .term import Term, host_term, kernels_term, leg_term, legs_term, sent_term, stream_term, total

KINDS = {
    "gemm": "matrix products",
    "pointwise": "elementwise",
    "reduce": "reductions",
    "move": "copies and look-ups",
}

WIRE = "derived: bytes of codes and scales, at the links' latencies and bandwidths"
CODEC = "derived: bytes and instructions of the program's kernels, at the device's rates"
SHARED = "derived: a rank that waits leaves its processor to others"
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
            _bubble(plan, stages, busiest, cluster),
            stages[slowest].sync,
        ],
    )


def _bubble(plan: Plan, stages: list[StageTimes], busiest: int, cluster: Cluster) -> Term:
    """What the pipeline takes beyond the busiest stage's own work."""
    count, chunks = plan.micro_batches, plan.chunks
    if len(stages) == 1:
        return total("bubble", [])
    busy = [stage.busy_seconds / count for stage in stages]
    hops = plan_hops(plan, cluster)
    ways = [hop.seconds for hop in hops]
    period = period_seconds(busy, ways, chunks)
    shares = [piece_shares(plan, stage) for stage in plan.stages]
    ends = [(own[0], own[-1]) for own in shares]
    beside = beside_seconds(busy, ends)
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
    parts = [fill, _sends(plan, hops, cluster), wait]
    shared = cluster.device.ranks_per_processor
    if shared > 1:
        pipeline = pipeline_seconds(busy, ways, count, chunks, sharing=shared, ends=ends)
        found = count * symbols["b"] + sum(part.value for part in parts)
        parts.append(
            Term(
                "processors given by waiting ranks",
                pipeline - found,
                "s",
                "t_s",
                SHARED,
                {"t_s": pipeline - found},
            )
        )
    return total("bubble", parts)


def _sends(plan: Plan, hops: list[Hop], cluster: Cluster) -> Term:
    """The first micro-batch over every boundary, both ways."""
    crossed = Counter(
        send_leg(hop.wire_bytes, link)
        for hop, link in zip(hops, boundary_links(len(hops), cluster), strict=True)
        if hop.wire_bytes
    )
    sends = [leg_term(leg, 2 * boundaries, cluster) for leg, boundaries in crossed.items()]
    program = hop_program(plan)
    if program is None:
        return total("sends between stages", sends)
    codec = 2 * sum(hop.codec_seconds for hop in hops)
    return total(
        f"sends between stages as {program.name}",
        [total("on the wire", sends), Term("codec", codec, "s", "k_c", CODEC, {"k_c": codec})],
    )


def stage_times(plan: Plan, stage: Stage, cluster: Cluster) -> StageTimes:
    """Every term of one stage."""
    times, own = plan.micro_batches, runs(plan, stage)
    axes = [
        (share, axes_of(plan, share.strategy, share.bytes.item, cluster)) for share in stage.shares
    ]
    passed = Term(
        "passages",
        times * stage.passage_seconds / 2,
        "s",
        "m*t/2",
        "derived: collectives between strategies",
        {"m": times, "t": stage.passage_seconds},
    )
    gathers = [_per_call("weights", "all_gather", s, a, times) for s, a in axes]
    scatters = [_per_call("gradients", "reduce_scatter", s, a, times) for s, a in axes]
    added = [_accumulated(s, a, times, cluster) for s, a in axes]
    once = [
        piece_term(
            f"{label(plan, x)}, once",
            x.forward,
            x.last - x.first,
            cluster,
            reductions_of(plan, plan.strategy_of(x), cluster),
        )
        for x in plan.layers
        if x.once
    ]
    return StageTimes(
        total("forward", [*(run_term(plan, x, "forward", cluster) for x in own), *gathers, passed]),
        total(
            "backward",
            [
                *(run_term(plan, x, "backward", cluster) for x in own),
                *gathers,
                *scatters,
                *added,
                passed,
            ],
        ),
        total("synchronisation", [t for s, a in axes for t in _synced(plan, s, a, cluster)] + once),
    )


def runs(plan: Plan, stage: Stage) -> list[Layers]:
    """The runs of layers of a stage that every micro-batch passes."""
    return [x for x in plan.layers if stage.holds(x.first) and not x.once]


def run_term(plan: Plan, layers: Layers, direction: str, cluster: Cluster) -> Term:
    """One direction of a run of layers over a whole step."""
    piece: Piece = getattr(layers, direction)
    times = (layers.last - layers.first) * plan.micro_batches
    reductions = reductions_of(plan, plan.strategy_of(layers), cluster)
    return piece_term(label(plan, layers), piece, times, cluster, reductions)


def label(plan: Plan, layers: Layers) -> str:
    """`block ×4`."""
    name, count = plan.shardings[layers.sharding].function, layers.last - layers.first
    return f"{name} ×{count}" if count > 1 else name


def piece_term(
    name: str, piece: Piece, times: int, cluster: Cluster, reductions: Reductions | None = None
) -> Term:
    """A forward or backward, run `times` times, by kind of operator and collective, some sums of which
    are compressed."""
    kinds = defaultdict(list)
    for kernels in piece.kernels:
        kinds[kernels.work].append(kernels)
    work = [
        kernels_term(KINDS.get(kind, kind), members, times, cluster.device)
        for kind, members in kinds.items()
    ]
    parts = [*work, *(_sent(sent, times, cluster, reductions) for sent in piece.sent)]
    beside = sum(part.value for part in parts)
    return total(name, [*parts, host_term(piece.host_bytes, beside, times, cluster.device)])


def _sent(sent: Sent, times: int, cluster: Cluster, reductions: Reductions | None) -> Term:
    """Equal collectives, as they are or compressed."""
    key = sent.axis, sent.amount_bytes, sent.item, sent.size, sent.stride
    priced = reductions.priced(*key) if reductions is not None else None
    if reductions is None or priced is None:
        return sent_term(sent, times, cluster)
    count = sent.count * times
    name = f"{sent.kind} over {sent.axis} as {reductions.programs[sent.axis].name}"
    return total(name, compressed_terms(priced.wire_seconds, priced.codec_seconds, count))


def compressed_terms(wire_seconds: float, codec_seconds: float, times: int) -> list[Term]:
    """The two parts of what travels compressed so many times."""
    return [
        Term(
            "on the wire",
            times * wire_seconds,
            "s",
            "n*w_c",
            WIRE,
            {"n": times, "w_c": wire_seconds},
        ),
        Term(
            "codec", times * codec_seconds, "s", "n*k_c", CODEC, {"n": times, "k_c": codec_seconds}
        ),
    ]


def _per_call(subject: Subject, kind: str, share: Share, axes: BatchAxes, times: int) -> Term:
    """Weights gathered before a call, or gradients scattered after it."""
    needed = "parameter" if subject == "weights" else "gradient"
    chosen = axes.sharded if needed in axes.shards else []
    scale = 1 if subject == "weights" else axes.scale
    small = share.bytes.small / max(share.bytes.trained, 1)
    return total(
        f"{kind} of {subject}",
        [
            term
            for amount, calls in share.bytes.calls
            for term in _moved(
                subject, kind, axes.cut(amount) * scale, chosen, axes, small, calls * times
            )
        ],
    )


def _accumulated(share: Share, axes: BatchAxes, times: int, cluster: Cluster) -> Term:
    amount = 2 * share.bytes.trained * axes.scale * axes.part("gradient")
    count = times if times > 1 else 0
    return stream_term("adding up gradients", "accumulate", amount, count, cluster.device)


def _synced(plan: Plan, share: Share, axes: BatchAxes, cluster: Cluster) -> Iterator[Term]:
    """Once per step: gradients added up over ranks, weights updated and sent round."""
    held, part = share.bytes.trained, axes.scale * axes.part("optimizer")
    small = share.bytes.small / max(held, 1)
    yield from _moved("gradients", "all_reduce", held * part, axes.replicas, axes, small)
    for axis in axes.inside:
        yield from _over("all_reduce", share.bytes.summed[axis[0]] * part, [axis], 1, cluster)
    if "optimizer" in axes.shards and "gradient" not in axes.shards:
        yield from _moved(
            "gradients", "reduce_scatter", held * axes.scale, axes.sharded, axes, small
        )
    yield from _over("all_reduce", axes.rest(held) * axes.scale, axes.copies, 1, cluster)
    if "optimizer" in axes.shards and "parameter" not in axes.shards:
        yield from _moved("weights", "all_gather", held, axes.sharded, axes, small)
    states = plan.optimizer.states
    touched = 2 * axes.kept(held * (2 + states), "optimizer")
    yield stream_term("optimizer", plan.optimizer.name, touched, 1, cluster.device)


def _moved(
    subject: Subject,
    kind: str,
    amount: float,
    chosen: Axes,
    axes: BatchAxes,
    small: float,
    times: int = 1,
) -> Iterator[Term]:
    """A collective of gradients or weights, compressed along the axes where it is."""
    for axis in chosen:
        priced = axes.compressed(subject, amount, axis, small)
        if priced is None:
            yield from _over(kind, amount, [axis], times, axes.cluster)
            continue
        name = f"{kind} over {axis[0]} as {axes.name(subject, axis[0])}"
        yield total(name, compressed_terms(priced.wire_seconds, priced.codec_seconds, times))


def _over(kind: str, amount: float, axes: Axes, times: int, cluster: Cluster) -> Iterator[Term]:
    for role, size, stride in axes:
        legs = collective_legs(kind, amount, size, stride, cluster)
        yield legs_term(f"{kind} over {role}", legs, times, cluster)
