"""`plait doctor`: what is installed here, what is missing, and what that gives."""

from __future__ import annotations

import argparse
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from ..version import VERSION
from .arguments import add_json
from .output import print_json

MISSING = "missing"


class Finding(NamedTuple):
    """A package, program or device: its version or number, and what it gives."""

    name: str
    state: str
    gives: str


PACKAGES = {
    "torch": "tracing, programs",
    "ortools": "searches and placements that are proved",
    "numba": "placement and arenas at speed",
    "transformers": "hf: sources (pip install plait[hf])",
    "triton": "compression kernels for GPUs (pip install plait[triton])",
    "safetensors": "weights and checkpoints in safetensors files",
    "mcp": "plait serve for agents (pip install plait[mcp])",
}
PROGRAMS = {
    "g++": "compression kernels on the CPU",
    "torchrun": "plait run and plait verify",
    "nvidia-smi": "plait cluster init on machines with GPUs",
    "scontrol": "plait cluster init in a Slurm job",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    findings = [
        Finding("plait", VERSION, f"this command, under Python {platform.python_version()}")
    ]
    findings += [Finding(n, _or_missing(version, n), gives) for n, gives in PACKAGES.items()]
    findings += [Finding(n, shutil.which(n) or MISSING, gives) for n, gives in PROGRAMS.items()]
    findings += _devices()
    if arguments.json:
        print_json({"findings": [finding._asdict() for finding in findings]})
        return 0
    for name, state, gives in findings:
        print(f"{name:14} {state:24} {gives}")
    return 0


def _or_missing(version_of: Callable[[str], str], name: str) -> str:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return MISSING


def _devices() -> list[Finding]:
    """GPUs, and the backends of collectives that this torch has."""
    try:
        import torch
        from torch import distributed
    except ImportError:
        return []
    backends = [n for n in ("nccl", "gloo") if getattr(distributed, f"is_{n}_available")()]
    gpus = torch.cuda.device_count()
    name = torch.cuda.get_device_name(0) if gpus else MISSING
    return [
        Finding("GPUs", f"{gpus} x {name}" if gpus else name, "ranks on CUDA; without, on gloo"),
        Finding("backends", ", ".join(backends) or MISSING, "collectives between ranks"),
    ]
