"""Parameters that several pipeline stages use, as embeddings that are the head as well.

Every stage that uses one has a copy; the sum of all copies' gradients keeps them equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

Uses = dict[int, str]  # the parameter's name on every stage that uses it


class SharedParameters:
    """The shared parameters of a pipeline, with a group of ranks for each set of stages."""

    def __init__(self, shared: Sequence[Uses], mesh: DeviceMesh, axis: str) -> None:
        self.stage = mesh[axis].get_local_rank()
        self.groups: list[tuple[Uses, dist.ProcessGroup]] = []
        stages = mesh.size(0)
        columns = mesh.mesh.reshape(stages, -1).T.tolist()
        for uses in shared:
            for column in columns:
                ranks = [column[stage] for stage in uses]
                group = dist.new_group(ranks)
                if dist.get_rank() in ranks and isinstance(group, dist.ProcessGroup):
                    self.groups.append((uses, group))

    def sum_gradients(self, module: nn.Module) -> None:
        """Let every copy have the sum of all copies' gradients."""
        for uses, group in self.groups:
            gradient = module.get_parameter(uses[self.stage]).grad
            if gradient is not None:
                local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
                dist.all_reduce(local, group=group)
