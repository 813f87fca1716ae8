"""Plans for heterogeneous clusters: pipeline replicas, each on devices of its own.

    replica 0   2 h100: layers 0-20  ->  2 a100: layers 21-31      12 micro-batches
    replica 1   1 a100: layers 0-31                                 4 micro-batches

A pipeline replica has all layers, partitioned for its own devices, and runs its share of the
micro-batches. Replicas sum their gradients once per step. (FlashFlex, Yan et al. 2024.)
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..devices.heterogeneous import HeterogeneousCluster
from ..ranges import Bytes, Count, Digest, FewCount, Index, Rate, Seconds
from .memory_action import MemoryAction
from .plan import Optimizer, Span, Stage
from .strategy import Strategy


class DeviceGroup(msgspec.Struct, frozen=True):
    """Devices of one stage of a replica: neighbours of a part from its `first_device` on, with their
    strategy, their memory action, and the stage they run (calls, times, bytes)."""

    part: Index
    first_device: Index
    strategy: Strategy
    memory: MemoryAction
    stage: Stage

    @property
    def width(self) -> int:
        """Number of devices."""
        return self.strategy.devices

    @property
    def calls(self) -> Span:
        """Its calls, [first, last)."""
        return self.stage.model_chunks[0]

    def ranks(self, cluster: HeterogeneousCluster) -> range:
        """Ranks of its devices in the cluster."""
        start = cluster.first_ranks[self.part] + self.first_device
        return range(start, start + self.width)


class PipelineReplica(msgspec.Struct, frozen=True):
    """A pipeline of device groups; it runs `micro_batches` of a step in `seconds`."""

    micro_batches: FewCount
    device_groups: tuple[DeviceGroup, ...]
    seconds: Seconds = 0.0


class HeterogeneousPlan(msgspec.Struct, frozen=True):
    """A plan for a heterogeneous cluster, with its predicted cost.

    `micro_batch`: samples per micro-batch. `single_part_seconds`: step time of each part without the
    others, and last of all devices as if they were the slowest; None where that does not fit.
    """

    model: str
    model_digest: Digest
    cluster: HeterogeneousCluster
    global_batch: Count
    micro_batch: Count
    precision: str
    optimizer: Optimizer
    replicas: tuple[PipelineReplica, ...]
    sync_seconds: Seconds
    step_seconds: Seconds
    tokens_per_second: Rate
    lower_bound_seconds: Seconds
    single_part_seconds: tuple[Seconds | None, ...] = ()
    calls: tuple[str, ...] = ()
    status: Literal["optimal", "feasible"] = "feasible"
    memory_limit_bytes: Bytes | None = None  # the user's limit per device
    complete: bool = True

    @property
    def gap(self) -> float:
        return max(0.0, 1 - self.lower_bound_seconds / self.step_seconds)

    def memory_limit(self, group: DeviceGroup) -> int:
        """Bytes per device of a group that a plan may use."""
        return self.cluster.memory_limit(group.part, self.memory_limit_bytes)
