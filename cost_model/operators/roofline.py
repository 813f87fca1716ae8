"""Seconds of one operator: roofline with efficiencies by kind of work and size.

A matrix product reaches the device's measured ceiling when it is large; small ones lose to ramp-up,
modelled as a saturation in flops. Bandwidth-bound work reaches a fixed fraction of memory
bandwidth. Every constant is an assumption about a kind of work, not a fit to one machine."""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ...ir.devices.cluster import Device
from ...ir.devices.curve import Curve
from ...ir.loops import Work

# Time that a product spends below full rate, as seconds of ramp-up at peak (assumed).
RAMP_SECONDS = 4e-6
GEMM_EFFICIENCY = (
    0.78  # of the ceiling, the best of many shapes, that a network's products reach (assumed)
)
ATTENTION_EFFICIENCY = 0.45  # of the ceiling: softmax between the two products (assumed)
CONVOLUTION_EFFICIENCY = 0.8
BANDWIDTH_EFFICIENCY = 0.8  # of the memory bandwidth that streaming kernels reach (assumed)

EFFICIENCY: dict[Work, float] = {
    "gemm": GEMM_EFFICIENCY,
    "attention": ATTENTION_EFFICIENCY,
    "convolution": CONVOLUTION_EFFICIENCY,
}


Amount = TypeVar("Amount", float, NDArray[np.float64])


def op_seconds(
    work: Work, flops: Amount, moved: Amount, dtype: str, device: Device, kind: str = ""
) -> Amount:
    """Seconds of one kernel of `flops` and `moved` bytes of memory traffic; never below roofline.
    `kind` is the operator, for devices where it was measured. Takes and returns numbers or numpy
    arrays of one shape."""
    if work == "view":
        return moved * 0.0
    curve = device.curve((kind, work), dtype) if device.curves else None
    if curve is not None:
        return read_curve(curve, flops if curve.by == "flops" else moved)
    memory = moved / (BANDWIDTH_EFFICIENCY * device.memory_bandwidth_bytes_per_second)
    rate = EFFICIENCY.get(work)
    if rate is None:
        return memory + device.launch_overhead_seconds
    compute = (
        flops / (device.peak(dtype) * device.achievable * device.sustained * rate) + RAMP_SECONDS
    )
    return cast(Amount, np.maximum(compute, memory)) + device.launch_overhead_seconds


def read_curve(curve: Curve, amounts: Amount) -> Amount:
    """`Curve.at` of a number or of an array, in seconds."""
    last = curve.amounts[-1]
    read = np.interp(amounts, curve.amounts, curve.seconds)
    return cast(Amount, np.where(amounts > last, curve.seconds[-1] / last * amounts, read))


def stream_seconds(kind: str, amount: float, device: Device) -> float:
    """Seconds to stream `amount` bytes through memory, as measured for `kind` or at full
    bandwidth."""
    curve = device.curve((kind,), "float32")
    return curve.at(amount) if curve else amount / device.memory_bandwidth_bytes_per_second


def exposed_host_seconds(host_bytes: float, seconds: float, device: Device) -> float:
    """Exposed seconds of a host copy beside compute of `seconds`, which hides it where the device
    can."""
    copy = host_bytes / device.host_bandwidth_bytes_per_second
    return max(0.0, copy - seconds) if device.host_copies_hide else copy
