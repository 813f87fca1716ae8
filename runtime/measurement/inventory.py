"""What a machine says of itself: devices by nvidia-smi or torch, ports by ibstat, nodes by Slurm.

    nvidia-smi --query-gpu=name,memory.total   NVIDIA H100 80GB HBM3, 81559
    nvidia-smi topo -m                         GPU0 GPU1: NV18
    ibstat                                     State: Active, Rate: 400
    scontrol show job                          NumNodes=16

Every question may stay without an answer.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence

import msgspec

Ask = Callable[[Sequence[str]], str | None]  # a command line -> what it prints; None: it cannot run
SECONDS = 20  # that a command may take
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
TOPOLOGY, PORTS, JOB = ("nvidia-smi", "topo", "-m"), ("ibstat",), ("scontrol", "show", "job")


class Inventory(msgspec.Struct, frozen=True):
    """One machine and how many there are: device names with GB of memory, whether NVLink joins them,
    the rates of active network ports in Gbit/s, nodes of the job, and who said so."""

    names: tuple[str, ...] = ()
    memory_gb: tuple[float, ...] = ()
    nvlink: bool | None = None
    port_gbits: tuple[float, ...] = ()
    nodes: int | None = None
    sources: tuple[str, ...] = ()


def answer(command: Sequence[str]) -> str | None:
    """What a command prints; None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def take_inventory(ask: Ask) -> Inventory:
    """Ask the machine that this process runs on."""
    devices = _devices(ask(NVIDIA_SMI) or "") or _torch_devices()
    ports, nodes = _ports(ask(PORTS) or ""), _nodes(ask(JOB) or "")
    topology = ask(TOPOLOGY)
    said = {"nvidia-smi or torch": devices, "ibstat": ports, "scontrol": nodes}
    return Inventory(
        tuple(name for name, _ in devices),
        tuple(memory for _, memory in devices),
        None if topology is None else re.search(r"\bNV\d+\b", topology) is not None,
        ports,
        nodes,
        tuple(name for name, what in said.items() if what),
    )


def _devices(text: str) -> list[tuple[str, float]]:
    """Name and GB of every device that nvidia-smi lists in MiB."""
    rows = (line.rsplit(",", 1) for line in text.splitlines() if "," in line)
    return [
        (name.strip(), float(memory) * 2**20 / 1e9)
        for name, memory in rows
        if memory.strip().isdecimal()
    ]


def _torch_devices() -> list[tuple[str, float]]:
    """Name and GB of every device that torch sees; also those of AMD."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [(p.name, p.total_memory / 1e9) for p in properties]


def _ports(text: str) -> tuple[float, ...]:
    """Gbit/s of every active port that ibstat lists."""
    ports = re.split(r"(?m)^\s*Port \d+:", text)[1:]
    active = (port for port in ports if re.search(r"State:\s*Active", port))
    rates = (re.search(r"Rate:\s*(\d+)", port) for port in active)
    return tuple(float(rate[1]) for rate in rates if rate and float(rate[1]) > 0)


def _nodes(text: str) -> int | None:
    """Nodes of the first running job."""
    for job in re.split(r"(?m)^(?=JobId=)", text):
        number = re.search(r"\bNumNodes=(\d+)", job)
        if number and "JobState=RUNNING" in job:
            return int(number[1])
    return None
