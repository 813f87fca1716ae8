"""Seconds of one operator: roofline with efficiencies by kind of work and size.

A matrix product reaches the device's measured ceiling when it is large; small ones lose to ramp-up,
modelled as a saturation in flops. Bandwidth-bound work reaches a fixed part of the memory bandwidth.
Every constant is an assumption about kinds of work, not a fit to one machine.
"""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ...ir.devices.cluster import Device
from ...ir.devices.curve import Curve
from ...ir.loops import Work

# Time that a product spends below full rate, as seconds of ramp-up at peak (assumed).
RAMP_SECONDS = 4e-6
SHAPE_PART = (
    0.78  # of the ceiling, the best of many shapes, that a network's products reach (assumed)
)
ATTENTION_PART = 0.45  # of the ceiling: softmax between the two products (assumed)
CONVOLUTION_PART = 0.8
BANDWIDTH_PART = 0.8  # of the memory bandwidth that streaming kernels reach (assumed)

RATE: dict[Work, float] = {
    "gemm": SHAPE_PART,
    "attention": ATTENTION_PART,
    "convolution": CONVOLUTION_PART,
}


Amount = TypeVar("Amount", float, NDArray[np.float64])


def op_seconds(
    work: Work, flops: Amount, moved: Amount, dtype: str, device: Device, kind: str = ""
) -> Amount:
    """Seconds of one kernel that does `flops` and touches `moved` bytes; never below roofline.
    `kind` is the operator, for devices where it was measured. Numbers or numpy arrays of one shape;
    so is the result."""
    if work == "view":
        return moved * 0.0
    curve = device.curve((kind, work), dtype) if device.curves else None
    if curve is not None:
        return along(curve, flops if curve.by == "flops" else moved)
    memory = moved / (BANDWIDTH_PART * device.memory_bandwidth_bytes_per_second)
    rate = RATE.get(work)
    if rate is None:
        return memory + device.launch_overhead_seconds
    compute = (
        flops / (device.peak(dtype) * device.achievable * device.sustained * rate) + RAMP_SECONDS
    )
    return cast(Amount, np.maximum(compute, memory)) + device.launch_overhead_seconds


def along(curve: Curve, amounts: Amount) -> Amount:
    """`Curve.at` of a number or of an array."""
    last = curve.amounts[-1]
    read = np.interp(amounts, curve.amounts, curve.seconds)
    return cast(Amount, np.where(amounts > last, curve.seconds[-1] / last * amounts, read))


def stream_seconds(kind: str, amount: float, device: Device) -> float:
    """Seconds in which `amount` bytes pass through memory, as measured for `kind` or at full
    bandwidth."""
    curve = device.curve((kind,), "float32")
    return curve.at(amount) if curve else amount / device.memory_bandwidth_bytes_per_second


def exposed_host_seconds(host_bytes: float, seconds: float, device: Device) -> float:
    """What a copy between device and host takes beyond the work of `seconds` beside it, if it hides."""
    copy = host_bytes / device.host_bandwidth_bytes_per_second
    return max(0.0, copy - seconds) if device.host_copies_hide else copy
