"""Exchanges that run beside nothing, at the ends of a pass and of a step.

generated programs   largest gather │ call 0 ‖ gather 1 │ …              one call, and what is too large
FSDP                 gathers of the embedding and of layer 0 │ layer 0 ‖ gather of layer 1 │ …
buckets of a step    backward ‖ all buckets but one │ last bucket
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from ..execution_model import ExecutionModel


class CallExchange(NamedTuple):
    """Exchanges of equal calls, in the order of calls: their number, seconds and bytes of each."""

    calls: int
    seconds: float
    message_bytes: float


def alone_seconds(
    exchanges: Sequence[CallExchange], execution: ExecutionModel, limit_bytes: int
) -> float:
    """Seconds of the exchanges of a pass that run beside nothing. Generated programs: of the longest
    one, and of those of more than `limit_bytes`; other frameworks: of the first calls, whose compute is
    an embedding's."""
    if execution.exposes_ends:
        fitting = (e.seconds for e in exchanges if e.message_bytes <= limit_bytes)
        large = (e.calls * e.seconds for e in exchanges if e.message_bytes > limit_bytes)
        return max(fitting, default=0.0) + sum(large)
    left, seconds = execution.calls_alone, 0.0
    for exchange in exchanges:
        taken = min(left, exchange.calls)
        seconds, left = seconds + taken * exchange.seconds, left - taken
    return seconds


def bucket_messages(execution: ExecutionModel, elements: float, ranks: int) -> int:
    """Messages that gradients or weights of `elements` travel in once per step, over `ranks` ranks; 0
    where the framework does not say."""
    if execution.bucket_elements is None:
        return 0
    least, per_rank = execution.bucket_elements
    return max(1, ceil(elements / max(least, per_rank * ranks)))
