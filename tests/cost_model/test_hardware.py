"""Clusters by name."""

from pathlib import Path

import pytest

from plait.cost_model.hardware import cloud_shapes, load_cluster, presets
from plait.ir.errors import FileError, UsageError


@pytest.mark.parametrize("kind", presets())
def test_every_preset_is_complete_and_says_where_its_numbers_come_from(kind: str) -> None:
    cluster = load_cluster(f"4x8x{kind}")
    assert cluster.devices == 32
    assert cluster.device.source
    outer, inner = cluster.levels
    assert inner.bandwidth_bytes_per_second >= outer.bandwidth_bytes_per_second
    assert inner.latency_seconds <= outer.latency_seconds
    assert cluster.device.peak("bfloat16") >= cluster.device.peak("float32") > 0
    assert cluster.device.runtime_overhead_bytes < cluster.device.memory_bytes


@pytest.mark.parametrize(
    ("spec", "sizes", "innermost"),
    [
        ("8xh100", (8,), "scale_up"),
        ("8x8xh100", (8, 8), "scale_up"),
        ("2048x8xh100", (2048, 8), "scale_up"),
        ("4x8xa100-80", (4, 8), "scale_up"),
        ("64xh100", (64,), "network"),
        ("64xgb200", (64,), "scale_up"),
        ("2x4x8xh100", (2, 4, 8), "scale_up"),
        ("gb200x72", (72,), "scale_up"),
        ("8xgb200x72", (8, 72), "scale_up"),
        ("16xp5", (16, 8), "scale_up"),
        ("2xND-H100-v5", (2, 8), "scale_up"),
        ("p5", (8,), "scale_up"),
    ],
)
def test_factors_read_from_the_outside_in(
    spec: str, sizes: tuple[int, ...], innermost: str
) -> None:
    cluster = load_cluster(spec)
    assert cluster.name == spec
    assert tuple(link.size for link in cluster.levels) == sizes
    assert cluster.levels[-1].name == innermost


@pytest.mark.parametrize(
    ("spec", "gbit"), [("16x8xh100@400", 400), ("4xa3-mega", 200), ("2xgb200x72@800", 800)]
)
def test_rates_between_nodes_are_nominal_gbit_per_device(spec: str, gbit: float) -> None:
    network = load_cluster(spec).levels[0]
    assert network.bandwidth_bytes_per_second == pytest.approx(gbit / 8 * 0.85e9)
    assert f"{gbit}" in network.source


@pytest.mark.parametrize("shape", cloud_shapes())
def test_machines_of_clouds_are_made_of_presets(shape: str) -> None:
    cluster = load_cluster(f"2x{shape}")
    assert cluster.device.kind == cloud_shapes()[shape].device
    assert cluster.levels[0].source.startswith(cloud_shapes()[shape].source)


@pytest.mark.parametrize("spec", ["8xh100@400", "h100x16", "2x8xh100@0", "8xh100x", "4xp5x8"])
def test_names_that_say_what_cannot_be_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"8xh100|h100|@0|p5"):
        load_cluster(spec)


def test_ranks_of_this_machine_share_its_memory() -> None:
    one, four = load_cluster("local:1"), load_cluster("local:4")
    assert four.devices == 4
    assert four.device.memory_bytes == one.device.memory_bytes // 4


def test_an_unknown_kind_lists_close_ones() -> None:
    with pytest.raises(UsageError, match="a100-80"):
        load_cluster("8xa100")


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "8",
        "8x",
        "x8xh100",
        "0x8xh100",
        "99999999999x8xh100",
        "local:",
        "local:0",
        "local:-1",
        "local:9999999",
        "8xh100\n",
        "../8xh100",
    ],
)
def test_bad_names_are_usage_errors(spec: str) -> None:
    with pytest.raises(UsageError):
        load_cluster(spec)


def test_a_path_is_read_as_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text('kind = "h100"\n[[level]]\nsize = 4\nlatency_us = 3\ngb_per_s = 300\n')
    cluster = load_cluster(str(path))
    assert (cluster.device.kind, cluster.devices) == ("h100", 4)
    with pytest.raises(FileError):
        load_cluster(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("kind", ["rtx3090", "rtx4090", "l40s"])
def test_graphics_cards_have_few_double_precision_units(kind: str) -> None:
    device = load_cluster(f"1x{kind}").device
    assert device.peak("float64") == pytest.approx(device.peak("float32") / 64, rel=0.01)
