"""Devices by the names of drivers, vendors and tables."""

import pytest

from plait.cost_model.device_names import preset_of


@pytest.mark.parametrize(
    ("name", "memory_gb", "preset"),
    [
        ("NVIDIA A100-SXM4-40GB", 42.4, "a100-40"),
        ("NVIDIA A100-SXM4-40GB", 0, "a100-40"),
        ("A100-SXM", 0, "a100-80"),
        ("NVIDIA A100 80GB PCIe", 85.5, "a100-pcie-80"),
        ("H100SXM", 0, "h100"),
        ("NVIDIA H100 PCIe", 85.0, "h100-pcie-80"),
        ("NVIDIA H200", 150.7, "h200"),
        ("NVIDIA H20-141GB", 0, "h20-141"),
        ("GB200 NVL72", 199.0, "gb200"),
        ("NVIDIA GeForce RTX 4090", 25.7, "rtx4090"),
        ("Titan RTX", 24, "rtx-titan"),
        ("NVIDIA L40", 48, "l40"),
        ("AMD Instinct MI300X", 206.0, "mi300x"),
        ("MI250X", 128, "mi250x-128"),
        ("Tesla V100-SXM2-32GB", 34.1, "v100-32"),
        ("TPU v6e", 32, "tpu-v6e"),
        ("TPUv4", 0, "tpu-v4"),
        ("v5p-512", 0, "tpu-v5p"),
        ("Ascend910B2", 64, "ascend-910b"),
        ("trn1.32xlarge", 0, "trainium1-32"),
        ("A1", 80, None),
        ("A1000", 0, None),
    ],
)
def test_names_of_drivers_and_tables_have_presets(name, memory_gb, preset):
    assert preset_of(name, memory_gb) == preset
