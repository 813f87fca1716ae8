"""Measurements become a cluster file that reads back as it was, and prices follow the measurements."""

import pytest

from plait.cost_model.calibration.curves import cluster_of, cluster_toml
from plait.cost_model.communication.collective import CommGroup, collective_seconds
from plait.cost_model.hardware import load_cluster
from plait.cost_model.operators.roofline import op_seconds
from plait.ir.devices.measured import MachineCosts, MeasuredCost
from plait.ir.errors import FileError

# fmt: off
COSTS = (
    MeasuredCost("gemm", "flops", 1e6, 2e-5),
    MeasuredCost("gemm", "flops", 1e9, 1e-2),
    MeasuredCost("pointwise", "bytes", 4096.0, 2e-6),
    MeasuredCost("pointwise", "bytes", 1e8, 1e-2),
    MeasuredCost("silu", "bytes", 4096.0, 9e-6),
    MeasuredCost("silu", "bytes", 1e8, 4e-2),
    MeasuredCost("all_reduce", "bytes", 1024, 5e-3, ranks=2),  # disturbed
    MeasuredCost("all_reduce", "bytes", 4096, 1e-3, ranks=2),
    MeasuredCost("all_reduce", "bytes", 1e6, 2e-3, ranks=2),
)
# fmt: on
MACHINE = MachineCosts('a "quoted"\nname', "cpu", 2, 8 << 30, "2.13.0", COSTS, 2)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(cluster_toml(cluster_of(MACHINE, "lab")))
    return path


def test_the_file_reads_back_as_it_was(file):
    found = load_cluster(str(file))
    assert found.devices == 2
    assert cluster_toml(found) == file.read_text()


def test_prices_are_the_measurements(file):
    calibrated = load_cluster(str(file))
    device = calibrated.device
    assert float(op_seconds("gemm", 1e9, 0.0, "float32", device)) == pytest.approx(1e-2)
    assert float(op_seconds("gemm", 2e9, 0.0, "float32", device)) == pytest.approx(2e-2)
    assert float(op_seconds("pointwise", 0.0, 10.0, "float32", device, "tanh")) == pytest.approx(
        2e-6
    )
    assert float(op_seconds("pointwise", 0.0, 1e8, "float32", device, "silu")) == pytest.approx(
        4e-2
    )
    assert collective_seconds("all_reduce", 1e6, CommGroup(2, 1), calibrated) == pytest.approx(2e-3)


def test_one_disturbed_measurement_does_not_raise_the_others(file):
    curve = load_cluster(str(file)).levels[0].curve("all_reduce", 2)
    assert curve is not None
    assert curve.seconds == pytest.approx((1e-3, 1e-3, 2e-3))


def test_every_number_says_where_it_comes_from(file):
    device = load_cluster(str(file)).device
    assert device.source_of("launch_us").startswith("measured with 2 ranks")
    assert device.source_of("runtime_gb").startswith("as of presets")
    assert all(c.source.startswith("measured") for c in device.curves)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("us = [20, 10000]", "us = [20]"),
        ('by = "flops"', 'by = "steps"'),
        ("amounts = [1e+06, 1e+09]", "amounts = [1e+09, 1e+06]"),
        ("amounts = [1e+06, 1e+09]", "amounts = [nan, 1e+09]"),
    ],
)
def test_broken_curves_are_refused_by_their_place(file, before, after):
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(FileError, match=r"device\.curve\[0\]"):
        load_cluster(str(file))
