"""Cluster files of machines from what their tools print."""

import pytest

from plait.api.formats.machine_file import machine_file
from plait.cost_model.hardware import preset_devices
from plait.ir.devices.cluster_file import parse_cluster
from plait.ir.errors import UsageError
from plait.runtime.measurement.inventory import JOB, NVIDIA_SMI, PORTS, TOPOLOGY, take_inventory

PORT = """CA 'mlx5_{0}'
\tNumber of ports: 1
\tPort 1:
\t\tState: {1}
\t\tPhysical state: LinkUp
\t\tRate: 400
"""
SAID = {
    NVIDIA_SMI: "NVIDIA H100 80GB HBM3, 81559\n" * 8,
    TOPOLOGY: "\tGPU0\tGPU1\nGPU0\t X \tNV18\nGPU1\tNV18\t X \n",
    PORTS: "".join(PORT.format(i, "Active" if i < 8 else "Down") for i in range(10)),
    JOB: "JobId=7 JobName=a\n   JobState=PENDING\n   NumNodes=3\n\n"
    "JobId=8 JobName=b\n   JobState=RUNNING\n   NumNodes=16 NumCPUs=128\n",
}


def test_a_slurm_job_of_nodes_with_nvlink_and_infiniband(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(machine_file(take_inventory(SAID.get)))
    cluster = parse_cluster(path, preset_devices())
    network, inside = cluster.levels
    assert (network.size, inside.size, cluster.device.kind) == (16, 8, "h100")
    assert network.bandwidth_bytes_per_second == pytest.approx(0.85 * 50e9)
    assert "ibstat" in network.source


def test_without_nvlink_devices_meet_over_pcie(tmp_path):
    path = tmp_path / "my.toml"
    said = {NVIDIA_SMI: "NVIDIA L40S, 46068\n" * 4, TOPOLOGY: "GPU0 X SYS"}
    path.write_text(machine_file(take_inventory(said.get), nodes=2))
    cluster = parse_cluster(path, preset_devices())
    assert [link.name for link in cluster.levels] == ["network", "pcie"]
    assert "preset" in cluster.levels[0].source


def test_what_no_preset_has_is_refused_with_what_would_do():
    with pytest.raises(UsageError, match="calibrate"):
        machine_file(take_inventory({NVIDIA_SMI: "Contoso X1, 81559\n"}.get))
    with pytest.raises(UsageError, match="no accelerator"):
        machine_file(take_inventory({NVIDIA_SMI: ""}.get))
    said = {NVIDIA_SMI: "NVIDIA H100 PCIe, 81559\nNVIDIA L40S, 46068\n"}
    with pytest.raises(UsageError, match=r"\[\[part\]\]"):
        machine_file(take_inventory(said.get))
