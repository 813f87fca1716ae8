"""draft"""
from __future__ import annotations
import msgspec
from math import prod
class Device(msgspec.Struct, frozen=True):
    kind: str
    memory_bytes: int
    peak_flops: dict[str, float]
    memory_bandwidth_bytes_per_second: float
    launch_overhead_seconds: float
    runtime_overhead_bytes: int
    def peak(self, dtype: str) -> float:
        return self.peak_flops.get(dtype, self.peak_flops["float32"])
class Link(msgspec.Struct, frozen=True):
    name: str
    size: int
    latency_seconds: float
    bandwidth_bytes_per_second: float
class Cluster(msgspec.Struct, frozen=True):
    name: str
    device: Device
    levels: tuple[Link, ...]
    @property
    def devices(self) -> int: return prod(l.size for l in self.levels)
    def level_for(self, stride: int, size: int) -> Link:
        span = stride * size
        inner = 1
        for link in reversed(self.levels):
            inner *= link.size
            if span <= inner: return link
        return self.levels[0]
