"""Operators are never faster than the roofline, and never faster for doing more."""

from typing import get_args

import numpy as np
import pytest

from plait.cost_model.hardware import load_cluster, presets
from plait.cost_model.operators.roofline import op_seconds
from plait.ir.model.loops import Work

AMOUNTS = np.logspace(3, 15, 49)
MATRIX = ("gemm", "attention", "convolution")


@pytest.mark.parametrize("kind", presets())
@pytest.mark.parametrize("work", MATRIX)
def test_never_below_the_roofline(kind: str, work: Work) -> None:
    device = load_cluster(f"1x{kind}").device
    for intensity in (0.1, 1.0, 100.0, 1e4):
        seconds = op_seconds(work, AMOUNTS, AMOUNTS / intensity, "bfloat16", device)
        assert np.all(seconds >= AMOUNTS / device.peak("bfloat16"))
        assert np.all(seconds >= AMOUNTS / intensity / device.memory_bandwidth_bytes_per_second)


@pytest.mark.parametrize("work", get_args(Work))
def test_more_is_never_faster(work: Work) -> None:
    device = load_cluster("8xh100").device
    assert np.all(np.diff(op_seconds(work, AMOUNTS, AMOUNTS * 0 + 1e6, "bfloat16", device)) >= 0)
    assert np.all(np.diff(op_seconds(work, AMOUNTS * 0 + 1e6, AMOUNTS, "bfloat16", device)) >= 0)


@pytest.mark.parametrize("work", get_args(Work))
def test_arrays_give_what_numbers_give(work: Work) -> None:
    device = load_cluster("8xa100-80").device
    many = op_seconds(work, AMOUNTS, AMOUNTS / 50, "bfloat16", device)
    one = [op_seconds(work, float(a), float(a / 50), "bfloat16", device) for a in AMOUNTS]
    assert many.tolist() == [float(x) for x in one]


def test_views_are_free_and_nothing_else_is() -> None:
    device = load_cluster("8xh100").device
    for work in get_args(Work):
        seconds = op_seconds(work, 0.0, 0.0, "float32", device)
        assert (seconds == 0) == (work == "view")


def test_large_products_near_the_ceiling_and_small_ones_do_not() -> None:
    device = load_cluster("8xh100").device

    def share(n: int) -> float:
        flops = 2.0 * n**3
        return float(flops / op_seconds("gemm", flops, 6.0 * n**2, "bfloat16", device)) / 989e12

    sustained = device.achievable * device.sustained
    assert 0.75 * sustained < share(16384) < sustained
    assert share(4096) > 0.9 * share(16384)
    assert share(512) < 0.1
