"""Bytes that a stage's exchanges and optimizer move through a device's memory."""

from __future__ import annotations

from ...ir.plan.plan import Optimizer
from ...ir.plan.workload import StageBytes
from .data_parallel import BatchAxes

CLIP_PASSES = 3  # over gradients: read for their norm, read and written to scale them


def accumulated_bytes(axes: BatchAxes, weight_bytes: int) -> float:
    """Bytes read and written to add a micro-batch's gradients to earlier ones."""
    return 2 * weight_bytes * axes.gradient_scale * axes.local_fraction("gradient")


def copied_bytes(axes: BatchAxes, weights: StageBytes) -> tuple[float, float]:
    """Bytes read and written in forward and in backward of a micro-batch by copies of gathered weights
    and of gradients that are sent."""
    if not axes.execution.copies_gathered:
        return 0.0, 0.0
    sharded = sum(n * axes.sharded_bytes(amount) for amount, n in weights.call_weight_bytes)
    gathered = 2.0 * sharded if "parameter" in axes.sharded_kinds else 0.0
    sent = (1 + axes.gradient_scale) * sharded if "gradient" in axes.sharded_kinds else 0.0
    return gathered, gathered + sent


def updated_bytes(axes: BatchAxes, weights: StageBytes, optimizer: Optimizer) -> int:
    """Bytes read and written by the optimizer's step: weights, gradients and states."""
    dense = axes.local_bytes(stepped_bytes(axes, weights.dense_bytes, optimizer), "optimizer")
    return dense + stepped_bytes(axes, weights.row_bytes, optimizer)


def stepped_bytes(axes: BatchAxes, weight_bytes: int, optimizer: Optimizer) -> int:
    """Bytes that a step moves for weights of so many bytes."""
    states = weight_bytes // axes.item * optimizer.states * optimizer.state_bytes
    clipped = CLIP_PASSES * axes.gradient_scale if axes.execution.clips_gradients else 0.0
    return 2 * (2 * weight_bytes + states) + int(clipped * weight_bytes)
