"""A cluster as Python users find it: by name, from a file, or this machine's ranks."""

from __future__ import annotations

from pathlib import Path

from ..ir.devices import cluster as ir


class Cluster(ir.Cluster, frozen=True):
    """Devices and the links between them. `Cluster.preset("8x8xh100")`, `Cluster.load("my.toml")` and
    `Cluster.detect()` give one; `plait.plan` takes it, or the name itself."""

    @staticmethod
    def preset(name: str) -> ir.Cluster:
        """A cluster by name: `8x8xh100`, `16x8xh100@400`, `16xp5`, `local:4`. Raises UsageError."""
        from ..cost_model.hardware import load_cluster

        return load_cluster(name)

    @staticmethod
    def load(path: str | Path) -> ir.Cluster:
        """The cluster of a TOML file; raises FileError naming the key that is wrong."""
        from ..cost_model.hardware import load_cluster

        return load_cluster(str(path))

    @staticmethod
    def detect(ranks: int | None = None) -> ir.Cluster:
        """This machine: its GPUs, or without any `ranks` gloo ranks on its processors (default: one a
        core)."""
        import os

        from ..cost_model.hardware import load_cluster
        from .parallel.rank_cluster import cluster_of_ranks

        return (
            load_cluster(f"local:{ranks or os.cpu_count() or 1}")
            if not _gpus()
            else (cluster_of_ranks(ranks or _gpus(), cuda=True))
        )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
