"""Terms of what a stage exchanges along its batch axes, copies for that, and steps on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ...ir.devices.cluster import Cluster
from ...ir.plan.plan import Plan
from ...ir.plan.workload import StrategyBytes
from ..communication.collective import collective_legs
from ..communication.compressed_collective import CompressedCost
from ..communication.data_parallel import BatchAxes
from ..communication.exchange import Exchange
from ..communication.step_bytes import accumulated_bytes, copied_bytes
from ..quantity import amount
from .overlap_terms import Calls
from .term import Term, codec_term, legs_term, optimizer_terms, priced_term, stream_term, total

Send = Callable[[int], Sequence[Exchange]]  # bytes of a call's weights -> what is sent
TRANSFER = "derived: bytes of codes and scales, at the links' latencies and bandwidths"


def moved_terms(
    share: StrategyBytes, axes: BatchAxes, times: int, cluster: Cluster
) -> tuple[list[Term], list[Term]]:
    """What exchanges move through memory in forward and in backward: copies of gathered weights and of
    gradients to send, gradients added up over micro-batches."""
    forward, backward = (
        stream_term("copies of what is gathered and sent", "copy", moved, times, cluster.device)
        for moved in copied_bytes(axes, share.bytes)
    )
    summed = accumulated_bytes(axes, share.bytes.dense_bytes)
    count = times if times > 1 else 0
    adding = stream_term("adding up gradients", "accumulate", summed, count, cluster.device)
    return [forward], [adding, backward]


def exchange_terms(
    exchanges: Iterable[Exchange], axes: BatchAxes, small: float, times: int = 1
) -> Iterator[Term]:
    """Terms of exchanges of gradients or weights, compressed along the axes with a program."""
    for exchange in exchanges:
        for axis in exchange.axes:
            name = f"{exchange.kind} over {axis.role}"
            priced = axes.compressed_cost(exchange, axis, small)
            if priced is None:
                part = exchange.amount / exchange.messages
                legs = collective_legs(exchange.kind, part, axis.group, axes.cluster)
                yield legs_term(name, legs, exchange.messages * times, axes.cluster)
                continue
            assert exchange.subject is not None
            program = axes.program(exchange.subject, axis.role)
            assert program is not None
            yield total(f"{name} as {program.name}", compressed_terms(priced, times, axes.cluster))


def call_exchanges_term(
    name: str, share: StrategyBytes, axes: BatchAxes, calls: Calls, send: Send, times: int
) -> Term:
    """Exchanges around every call of a stage: weights gathered before, gradients scattered after."""
    small = small_share(share)
    return total(
        name,
        [
            term
            for amount_bytes, count in calls
            for term in exchange_terms(send(amount_bytes), axes, small, count * times)
        ],
    )


def small_share(share: StrategyBytes) -> float:
    """Fraction of the trained bytes in tensors that are too small to be compressed."""
    return share.bytes.small_tensor_bytes / max(share.bytes.trained_bytes, 1)


def synchronisation(
    plan: Plan, share: StrategyBytes, axes: BatchAxes, cluster: Cluster
) -> Iterator[Term]:
    """Terms once per step: gradient reduction, gather of updated weights, optimizer step."""
    small = small_share(share)
    yield from exchange_terms(axes.step_reductions(share.bytes), axes, small)
    yield from exchange_terms(axes.update_gathers(share.bytes), axes, small)
    yield from optimizer_terms(share.bytes, axes, plan.optimizer, cluster.device)


def compressed_terms(priced: CompressedCost, times: int, cluster: Cluster) -> list[Term]:
    """Transfer and codec terms of `times` compressed exchanges."""
    count = amount("n", times)
    return [
        priced_term("transfer", count * amount("w_c", priced.transfer_seconds), TRANSFER),
        codec_term(count * amount("k_c", priced.codec_seconds), cluster.device),
    ]
