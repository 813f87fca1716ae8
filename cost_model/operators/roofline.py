"""Seconds of one operator: roofline with efficiencies by kind of work and size.

A matrix product reaches the device's measured ceiling when it is large; small ones lose to ramp-up,
modelled as a saturation in flops. Attention is its products and the softmax between them, counted as
the products it keeps waiting (`softmax_share`). Bandwidth-bound work reaches a fixed fraction of
memory bandwidth. Every constant is of a kind of work, not a fit to one machine."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ...ir.devices.cluster import Device
from ...ir.devices.curve import Curve
from ...ir.model.loops import Work
from ..quantity import Number, Quantity, at_least_zero, constant, curve_seconds, longest

# Time that a product spends below full rate, as seconds of ramp-up at peak. XLA's table of products
# measured on H100 (xla/service/gpu/model/matmul_interpolator_data.h): those of 4 to 137 Gflop take 3
# to 7 us longer than at the rate of the largest, launch included.
RAMP_SECONDS = 4e-6
# Of the ceiling, the best of many shapes, that a network's products reach: 0.85 to 1.0 for sizes of
# 1024 to 4096 (the same table).
GEMM_EFFICIENCY = 0.92
CONVOLUTION_EFFICIENCY = 0.8  # (assumed)
BANDWIDTH_EFFICIENCY = 0.8  # of the memory bandwidth that streaming kernels reach (assumed)
# Flops of products that softmax keeps waiting, per score. Forward: FlashAttention-2 reaches 0.70 of
# A100's ceiling at head size 128 (Dao 2023, figure 5), FlashAttention-3 614 Tflop/s on H100
# (pytorch/benchmark 2391). Backward: 0.65 and about 550 (the same papers).
SOFTMAX_FLOPS, SOFTMAX_BACKWARD_FLOPS = 200.0, 690.0

EFFICIENCY: dict[Work, float] = {
    "gemm": GEMM_EFFICIENCY,
    "attention": GEMM_EFFICIENCY,
    "convolution": CONVOLUTION_EFFICIENCY,
}


Amount = TypeVar("Amount", float, NDArray[np.float64], Quantity)


def op_seconds(
    work: Work, flops: Amount, moved: Amount, dtype: str, device: Device, kind: str = ""
) -> Amount:
    """Seconds of one kernel of `flops` and `moved` bytes of memory traffic; never below roofline.
    `kind` is the operator, for devices where it was measured. Takes and returns numbers, numpy
    arrays of one shape, or quantities."""
    if work == "view":
        return moved * 0.0
    curve = device.curve((kind, work), dtype) if device.curves else None
    if curve is not None:
        return _read_curve(curve, flops if curve.by == "flops" else moved)
    constant = _named if isinstance(moved, Quantity) else _plain
    launch = constant("t_l", device.launch_overhead_seconds)
    memory = moved / (
        constant("w", BANDWIDTH_EFFICIENCY)
        * constant("W", device.memory_bandwidth_bytes_per_second)
    )
    rate = EFFICIENCY.get(work)
    if rate is None:
        return memory + launch
    reached = constant(f"P_{dtype}", device.peak(dtype)) * constant("s", device.sustained)
    name = f"a_{dtype}" if dtype in device.achievable_of else "a"
    reached = reached * constant(name, device.achievable_share(dtype))
    compute = flops / (reached * constant(f"r_{work}", rate)) + constant("t_r", RAMP_SECONDS)
    return _longest(compute, memory) + launch


def softmax_share(width: int, out_width: int, backward: bool) -> float:
    """Flops of an attention kernel with those that softmax keeps waiting, per flop of its products;
    `width` of queries and keys, `out_width` of values, per head."""
    products = 6 * width + 4 * out_width if backward else 2 * (width + out_width)
    waiting = SOFTMAX_BACKWARD_FLOPS if backward else SOFTMAX_FLOPS
    return 1 + waiting / products


def _plain(name: str, value: float) -> Any:
    return value


def _named(name: str, value: float) -> Any:
    return Quantity(value, name)


def _longest(one: Amount, other: Amount) -> Amount:
    if isinstance(one, Quantity) and isinstance(other, Quantity):
        return longest(one, other)
    return cast(Amount, np.maximum(cast(Any, one), cast(Any, other)))


def _read_curve(curve: Curve, amounts: Amount) -> Amount:
    """`Curve.at` of a number, an array or a quantity, in seconds."""
    if isinstance(amounts, Quantity):
        return curve_seconds(curve, amounts)
    last = curve.amounts[-1]
    read = np.interp(amounts, curve.amounts, curve.seconds)
    return cast(Amount, np.where(amounts > last, curve.seconds[-1] / last * amounts, read))


def stream_seconds(kind: str, amount: Number, device: Device) -> Number:
    """Seconds to stream `amount` bytes through memory, as measured for `kind` or at full
    bandwidth."""
    curve = device.curve((kind,), "float32")
    if curve is not None:
        return curve_seconds(curve, amount)
    return amount / constant(amount, "W", device.memory_bandwidth_bytes_per_second)


def exposed_host_seconds(host_bytes: Number, seconds: Number, device: Device) -> Number:
    """Exposed seconds of a host copy beside compute of `seconds`, which hides it where the device
    can."""
    copy = host_bytes / constant(host_bytes, "W_h", device.host_bandwidth_bytes_per_second)
    return at_least_zero(copy - seconds) if device.host_copies_hide else copy
