"""What layers of experts do beyond their flops: padded rows, kernels of each expert, waits for the host.

Rows of an expert fill whole tiles. Where hosts read how many tokens every expert got, the device has
nothing to do until they have launched what follows.
"""

from __future__ import annotations

from math import exp
from typing import NamedTuple

from ...ir.devices.cluster import Device
from ...ir.model.loops import Loops, Site
from ..execution_model import ExecutionModel
from .roofline import RAMP_SECONDS

STREAMS = 4  # on which kernels of experts run (GroupedLinear of Transformer Engine)
FORWARD, BACKWARD = 0, 1
PRODUCTS = (2, 4)  # of an expert in forward, in backward
FORWARD_AGAIN = (
    3 / 8
)  # of backward's flops, where results are computed again for the gates' gradients


class ExpertLoad(NamedTuple):
    """Factors on what an operator of experts computes, sends, and reads and writes, bytes that forward
    leaves to backward, seconds that the device waits."""

    computed: float
    sent: float
    streamed: float
    saved_bytes: float
    stall_seconds: float


def expert_load(
    site: Site, declared: Loops | None, ranks: int, device: Device, execution: ExecutionModel
) -> ExpertLoad:
    """The load of experts on a rank that computes for the tokens of `ranks` ranks; none of other
    operators."""
    if declared is None or declared.routing is None:
        return ExpertLoad(1.0, 1.0, 1.0, 0.0, 0.0)
    routing = declared.routing
    half = BACKWARD if routing.repeated else FORWARD
    fullest = execution.routing.fullest(routing.experts, ranks)
    rows = ranks * declared.size("n") * routing.choices / routing.experts
    here = declared.size("e")
    share = 1 / execution.rows_per_centroid if ranks > 1 else 1.0
    computed = fullest * padded_share(rows * fullest, execution.expert_tile_rows) * share
    if share < 1 and half == BACKWARD:
        computed *= 1 + FORWARD_AGAIN
    saved = 0.0
    if execution.saves_dispatched:
        computed *= 1 - routing.repeated
        item = site.operands[0].bytes / site.operands[0].elements
        widths = sum(times * declared.size(name) for name, times in routing.saved)
        saved = fullest * here * rows * widths * item
    kernels = here * PRODUCTS[half] * execution.kernel_per_expert / STREAMS
    launching = kernels * (RAMP_SECONDS + device.launch_overhead_seconds)
    stall = execution.expert_dispatch_seconds[half] + launching
    # hashes and differences pass over all rows, about as often as their experts would
    return ExpertLoad(computed, fullest * share, fullest, saved, stall)


def padded_share(rows: float, tile: int) -> float:
    """Rows of tiles over rows of an expert, on average: the last of its tiles is half full."""
    return 1 + tile / 2 * (1 - exp(-rows)) / rows
