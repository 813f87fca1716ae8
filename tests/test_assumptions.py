"""Constants that nobody measured or derived: all of them are listed here, and they are few."""

import re
import tomllib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from plait.cost_model.execution_model import execution_model_files
from plait.cost_model.hardware import presets

ROOT = Path(__file__).parent.parent
PRICED_BY = ("cost_model", "api/predict", "ir/devices", "ir/compression", "planner/pricing")
CONSTANT = re.compile(r"^([A-Z][A-Z_0-9]*)\b[^=]*= ")
NUMBER = re.compile(r"^[A-Z][A-Z_0-9, ]*= [-\d.]+e?[-\d]*\b(?!.*#)")
MOST = 10
# What each stands for is said where it stands
ASSUMED = {
    "BANDWIDTH_EFFICIENCY",
    "CONVOLUTION_EFFICIENCY",
    "LOCAL",
    "MARGIN",
    "NETWORK_SHARE",
    "achievable",
    "dispatch_seconds",
    "launch_us",
    "sustained",
}


def sources():
    return [path for folder in PRICED_BY for path in sorted((ROOT / folder).rglob("*.py"))]


def assumed_constants():
    """Names of constants whose line, or the comment above it, says that they are assumed."""
    for path in sources():
        comment = ""
        for line in path.read_text(encoding="utf-8").splitlines():
            found = CONSTANT.match(line)
            if found and "(assumed" in comment + line:
                yield found[1]
            comment = comment + line if line.startswith("#") else ""


def test_what_is_assumed_is_listed_and_little():
    devices = [preset.device.sources for preset in presets().values()]
    models = [file.sources for file in execution_model_files().values()]
    said = {
        key for texts in (*devices, *models) for key, text in texts.items() if "assumed" in text
    }
    assert {*assumed_constants(), *said} == ASSUMED
    assert len(ASSUMED) < MOST


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_number_of_a_device_has_a_source(name):
    device = presets()[name].device
    assert device.source
    for key in ("achievable", "launch_us", "runtime_gb", "sustained", "host_gb_per_s"):
        source = device.source_of(key)
        assert source
        assert source != "assumed", key


def test_devices_with_one_source_of_a_number_have_one_number():
    numbers = defaultdict(set)
    for path in (ROOT / "cost_model/hardware").glob("*.toml"):
        device = tomllib.loads(path.read_text(encoding="utf-8"))["device"]
        for key, text in device["sources"].items():
            if not isinstance(device[key], dict):
                numbers[key, text].add(device[key])
    assert not {source for source, values in numbers.items() if len(values) > 1}


def test_every_rate_of_a_kernel_says_where_it_comes_from():
    path = ROOT / "cost_model/operators/roofline.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for before, line in pairwise(lines)
        if NUMBER.match(line) and not before.startswith("#")
    ]
    assert not bare
