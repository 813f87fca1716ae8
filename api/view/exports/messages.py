"""What the collectives of a stage send, by the names that a timeline gives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from ....cost_model.communication.data_parallel import BatchAxes, axes_of
from ....cost_model.communication.exchange import Exchange
from ....cost_model.explain.overlap_terms import calls_again
from ....ir.plan.plan import Plan
from ....ir.plan.workload import StrategyBytes

SYNC = "S"  # once per step; beside the kinds of slots


class TracedMessages(NamedTuple):
    """Bytes that a device sends in `messages` messages to the `size` ranks that stand `stride` apart."""

    sent_bytes: float
    messages: int
    size: int
    stride: int


def messages_of(plan: Plan, stage: int) -> dict[tuple[str, str], list[TracedMessages]]:
    """Of one forward ("F"), one backward ("B") and the end of a step ("S"), by the name of the term;
    those of a model chunk are taken together with those of all others of its stage."""
    named: dict[tuple[str, str], list[TracedMessages]] = defaultdict(list)
    for layers in plan.layers:
        if not layers.batch_only and not plan.stages[stage].contains(layers.first):
            continue
        halves = ("F", layers.forward), ("B", layers.backward)
        for kind, work in halves if not layers.batch_only else ((SYNC, layers.forward),):
            for sent in work.collectives:
                count = sent.count * (layers.last - layers.first)
                message = TracedMessages(sent.amount_bytes * count, count, sent.size, sent.stride)
                named[kind, f"{sent.kind} over {sent.axis}"].append(message)
    for share in plan.stages[stage].bytes_by_strategy:
        axes = axes_of(plan, share.strategy, share.bytes.item_bytes, plan.cluster_of(stage))
        for kind, name, message in _of_weights(share, axes):
            named[kind, name].append(message)
    return dict(named)


def _of_weights(share: StrategyBytes, axes: BatchAxes) -> Iterator[tuple[str, str, TracedMessages]]:
    """Messages of weights and gradients, around calls and once per step."""
    gathered, scattered = "all_gather of weights", "reduce_scatter of gradients"
    for kind, name, calls, send in (
        ("F", gathered, share.bytes.call_weight_bytes, axes.call_gathers),
        ("B", gathered, calls_again(share, axes), axes.call_gathers),
        ("B", scattered, share.bytes.call_weight_bytes, axes.call_scatters),
    ):
        for amount_bytes, count in calls:
            for exchange in send(amount_bytes):
                yield from ((kind, name, m) for _, m in _messages(exchange, count))
    for exchange in (*axes.step_reductions(share.bytes), *axes.update_gathers(share.bytes)):
        for role, message in _messages(exchange, 1):
            yield SYNC, f"{exchange.kind} over {role}", message


def _messages(exchange: Exchange, count: int) -> Iterator[tuple[str, TracedMessages]]:
    for axis in exchange.axes:
        group = axis.group
        messages = count * exchange.messages
        yield axis.role, TracedMessages(exchange.amount * count, messages, *group)
