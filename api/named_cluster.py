"""A cluster as Python users find it: by name, from a file, or this machine's ranks."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from ..ir.devices import cluster as ir


class _AnyCluster(type(ir.Cluster)):
    """Every cluster is one of users' `Cluster`: it adds ways to get one, and no state."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, ir.Cluster)


class Cluster(ir.Cluster, frozen=True, metaclass=_AnyCluster):
    """Devices and the links between them. `Cluster.preset("8x8xh100")`, `Cluster.load("my.toml")` and
    `Cluster.detect()` give one; `plait.plan` takes it, or the name itself."""

    @staticmethod
    def preset(name: str) -> Cluster:
        """A cluster by name: `8x8xh100`, `16x8xh100@400`, `16xp5`, `local:4`. Raises UsageError."""
        from ..cost_model.hardware import load_any_cluster

        return cast(Cluster, load_any_cluster(name))

    @staticmethod
    def load(path: str | Path) -> Cluster:
        """The cluster of a TOML file; raises FileError naming the key that is wrong."""
        from ..cost_model.hardware import load_any_cluster

        return cast(Cluster, load_any_cluster(str(path)))

    @staticmethod
    def detect(ranks: int | None = None) -> Cluster:
        """This machine: its GPUs, or without any `ranks` gloo ranks on its processors (default: one a
        core)."""
        import os

        from ..cost_model.hardware import load_cluster
        from .parallel.rank_cluster import cluster_of_ranks

        if gpus := _gpus():
            return cast(Cluster, cluster_of_ranks(ranks or gpus, cuda=True))
        return cast(Cluster, load_cluster(f"local:{ranks or os.cpu_count() or 1}"))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
