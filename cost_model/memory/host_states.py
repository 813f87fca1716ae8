"""Optimizers that step on the device's host: what is in its memory, and what their step costs.

device   sums of gradients ──copy──▶ ┐          ┌ ──copy──▶ weights
host     values, states              └─▶ step ─▶┘
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ...ir.devices.cluster import Device
from ...ir.plan.plan import Optimizer
from ...ir.plan.workload import StageBytes
from ..communication.data_parallel import BatchAxes
from ..execution_model import ExecutionModel
from ..operators.roofline import exposed_host_seconds, stream_seconds
from ..quantity import Number, constant
from .in_flight import InFlight


class HostStep(NamedTuple):
    """Bytes of a step: copied to the host and back, and read and written there."""

    copied: float
    streamed: float


def states_on_device(optimizer: Optimizer) -> int:
    """State tensors of a parameter's size that are on the device."""
    return 0 if optimizer.on_host else optimizer.states


def host_state_bytes(
    stage: StageBytes, axes: BatchAxes, optimizer: Optimizer, execution: ExecutionModel
) -> int:
    """Bytes of host memory for what the optimizer of a stage's calls steps on, gradients included."""
    replicated = execution.shards_replicated_states
    stepped = axes.stepped_bytes(stage.trained_bytes, stage.partial_gradient_bytes, replicated)
    elements = axes.local_bytes(stepped, "optimizer") // stage.item_bytes
    return elements * optimizer.host_copies * optimizer.state_bytes


def host_bytes(
    parts: Iterable[tuple[StageBytes, BatchAxes]],
    optimizer: Optimizer,
    execution: ExecutionModel,
    in_flight: InFlight,
) -> int:
    """Bytes of host memory for a device's offloaded values, and for an optimizer that steps there."""
    return sum(
        int(in_flight.peak * stage.host_bytes) + host_state_bytes(stage, axes, optimizer, execution)
        for stage, axes in parts
    )


def host_step(weights: StageBytes, axes: BatchAxes, optimizer: Optimizer) -> HostStep:
    """What a step on the host moves."""
    dense = axes.local_bytes(weights.dense_bytes, "optimizer")
    elements = (dense + weights.row_bytes) / weights.item_bytes
    copied = elements * weights.item_bytes * (1 + axes.gradient_scale)
    return HostStep(copied, 2 * elements * optimizer.host_copies * optimizer.state_bytes)


def host_stream_seconds(kind: str, amount: Number, device: Device) -> Number:
    """Seconds of a host to stream `amount` bytes through its memory, `kind` as measured where the device
    is the host. Presets do not say how quick the memory of other hosts is: at least as their link."""
    if not device.host_copies_hide:
        return stream_seconds(kind, amount, device)
    return amount / constant(amount, "W_h", device.host_bandwidth_bytes_per_second)


def host_step_seconds(step: HostStep, kind: str, device: Device) -> float:
    """Seconds of a step on the host, which runs beside nothing: it waits for the last gradient, and the
    next forward for its weights."""
    copying = exposed_host_seconds(step.copied, 0.0, device)
    return copying + host_stream_seconds(kind, step.streamed, device)
