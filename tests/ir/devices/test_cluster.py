"""A cluster knows which link a group crosses, and refuses hardware that cannot be."""

import math
from pathlib import Path

import msgspec
import pytest

from plait.ir.devices.cluster import Cluster, Device, Link
from plait.ir.devices.cluster_file import parse_cluster
from plait.ir.errors import FileError

DEVICE = Device("toy", 1 << 34, {"float32": 1e12, "bfloat16": 4e12}, 0.8, 1e12, 4e-6, 1 << 30)
NODES = Cluster("toy", DEVICE, (Link("network", 6, 1e-5, 1e10), Link("nvlink", 8, 1e-6, 1e11)))

FILE = """
name = "lab"
[device]
kind = "toy"
memory_gb = 16
memory_gb_per_s = 1000
achievable = 0.8
launch_us = 4
runtime_gb = 1
tflops = { float32 = 1, bfloat16 = 4 }
[[level]]
name = "network"
size = 6
latency_us = 10
gb_per_s = 10
[[level]]
name = "nvlink"
size = 8
latency_us = 1
gb_per_s = 100
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_devices_and_peaks() -> None:
    assert NODES.devices == 48
    assert DEVICE.peak("bfloat16") == 4e12
    assert DEVICE.peak("int64") == DEVICE.peak("float32") == 1e12


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 12, 16, 24, 48])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 6, 8, 12, 16, 24])
def test_a_group_is_inside_a_node_only_when_no_group_leaves_one(stride: int, size: int) -> None:
    block = stride * size
    if NODES.devices % block:
        pytest.skip("no such axis")
    groups = (
        {(base + offset + i * stride) // 8 for i in range(size)}
        for base in range(0, NODES.devices, block)
        for offset in range(stride)
    )
    leaves = any(len(nodes) > 1 for nodes in groups)
    if leaves:
        assert NODES.slowest_link(stride, size).name == "network"
    elif 8 % block == 0:
        assert NODES.slowest_link(stride, size).name == "nvlink"


def test_a_file_says_what_the_types_say(tmp_path: Path) -> None:
    read = parse_cluster(write(tmp_path / "lab.toml", FILE), {})
    assert (read.name, read.devices) == ("lab", 48)
    assert read.device.peak_flops == DEVICE.peak_flops
    assert read.levels[0].latency_seconds == pytest.approx(1e-5)
    assert read.levels[1].bandwidth_bytes_per_second == pytest.approx(1e11)


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("memory_gb = 16", "memory_gb = -1", "memory_gb"),
        ("memory_gb = 16", "memory_gb = nan", "memory_gb"),
        ("memory_gb = 16", 'memory_gb = "16"', "memory_gb"),
        ("launch_us = 4", "", "launch_us"),
        ("achievable = 0.8", "achievable = 1.5", "achievable"),
        ("float32 = 1,", "", "float32"),
        ("size = 6", "size = 0", r"level\[0\].size"),
        ("size = 6", "size = true", r"level\[0\].size"),
        ("size = 6", "size = 900_000_000", "devices"),
        ("gb_per_s = 100\n", "gb_per_s = inf\n", r"level\[1\].gb_per_s"),
        ("launch_us = 4", "launch_us = 4\nlaunch_ms = 4", r"device: .*launch_ms"),
        ("[[level]]", "[[levels]]", "levels"),
        ("tflops = { float32 = 1,", 'tflops = { float32 = "1",', r"device\.tflops"),
        (
            "launch_us = 4",
            "launch_us = 4\ncurve = [{amounts = [2, 1], us = [1, 1]}]",
            r"curve\[0\]",
        ),
        ("[device]", "[device", "not TOML"),
        ('name = "lab"', 'name = "lab"\nname = "again"', "not TOML"),
    ],
)
def test_a_broken_file_names_the_key(tmp_path: Path, old: str, new: str, names: str) -> None:
    assert FILE.count(old) >= 1
    path = write(tmp_path / "lab.toml", FILE.replace(old, new, 1))
    with pytest.raises(FileError, match=names):
        parse_cluster(path, {})


def test_a_missing_file_is_a_file_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.toml"):
        parse_cluster(tmp_path / "none.toml", {})


@pytest.mark.parametrize("number", [-1.0, 0.0, math.nan, math.inf])
def test_absurd_values_cannot_be_made(number: float) -> None:
    with pytest.raises(ValueError, match="bandwidth"):
        Link("l", 2, 0.0, number)
    with pytest.raises(ValueError, match="float32"):
        msgspec.structs.replace(DEVICE, peak_flops={"float32": number})


def test_json_round_trip_and_hostile_json() -> None:
    data = msgspec.json.encode(NODES)
    assert msgspec.json.decode(data, type=Cluster) == NODES
    hostile = data.replace(b'"size":6', b'"size":-6')
    with pytest.raises(msgspec.ValidationError, match=r"size.*levels"):
        msgspec.json.decode(hostile, type=Cluster)


def test_text_names_kind_and_levels() -> None:
    assert str(NODES) == "toy: 48 × toy (6 network · 8 nvlink)"


@pytest.mark.parametrize("sources", ["1", '{ speed = "x" }', "{ achievable = 3 }"])
def test_sources_are_texts_of_known_numbers(tmp_path: Path, sources: str) -> None:
    text = FILE.replace("[device]", f"[device]\nsources = {sources}")
    with pytest.raises(FileError, match=r"device\.sources"):
        parse_cluster(write(tmp_path / "lab.toml", text), {})


def test_numbers_say_where_they_come_from(tmp_path: Path) -> None:
    more = 'source = "a rack"\nsources = { launch_us = "measured" }'
    path = write(tmp_path / "lab.toml", FILE.replace("[device]", f"[device]\n{more}"))
    found = parse_cluster(path, {})
    assert found.device.source_of("launch_us") == "measured"
    assert found.device.source_of("tflops") == "a rack"
    assert found.device.source_of("sustained") == "not limited where nobody says"
