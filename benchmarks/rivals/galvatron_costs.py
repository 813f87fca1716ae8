"""Time and memory of layers, embedding and head, by Galvatron's formulas.

Formulas of the cost model in Hetu-Galvatron 2.4 (`core/cost_model/components`): mixed precision,
Megatron sequence parallelism, ZeRO-2 for replicas that do not use ZeRO-3, asynchronous gradient
reduction, 1F1B. Their flaws are kept (Ulysses ranks alone reduce gradients for free; ZeRO-3
gathers once).
"""

from __future__ import annotations

import math

import msgspec

from plait.benchmarks.rivals.galvatron_profile import (
    MIB,
    GalvatronCluster,
    GalvatronModel,
    PartMemory,
)
from plait.planner.interop.galvatron_strategy import GalvatronBatch, GalvatronStrategy

CONTEXT_BYTES = 1024 * MIB
GATHERS, EXCHANGES = 6, 4  # of hidden states in one layer, by tensor ranks and by Ulysses
RECOMPUTE_FACTOR = 1.5  # times the collectives where the forward is recomputed
STATES = 4  # copies in fp32: parameter, gradient, two of the optimizer
BACKWARD = 2  # times the forward
NOISE = 0.003  # of states that ZeRO does not shard evenly


class LayerSeconds(msgspec.Struct, frozen=True):
    """Seconds of one micro-batch, forward and backward, without and with gradient reduction."""

    plain: float
    synchronised: float


class GalvatronCosts(msgspec.Struct, frozen=True):
    """Costs of one model on one cluster."""

    model: GalvatronModel
    cluster: GalvatronCluster

    def layer_seconds(self, s: GalvatronStrategy, batch: GalvatronBatch) -> LayerSeconds:
        """Seconds of one layer for one micro-batch."""
        samples = batch.local(s)
        forward = self.model.layer_seconds(samples / s.ranks)
        backward = (BACKWARD + s.recompute) * forward
        parameter_bytes = self.model.layer_states_bytes / STATES / s.tensor_ranks  # fp32
        ring = self._ring(s.state_degree, neighbours=s.tensor_ranks == 1)
        sync = (s.state_degree - 1) / s.state_degree * parameter_bytes * ring
        other = self._split_seconds(s, samples * self.model.hidden_bytes)
        other += sync / 2 if s.zero3 else 0.0
        other += self._send_seconds(s, samples)
        exposed = sync if s.replicas > 1 else 0.0
        slow = self.cluster.slowdown - 1
        both = max(backward, exposed) + slow * min(backward, exposed)
        return LayerSeconds(forward + backward + other, forward + both + other)

    def ends_seconds(self, s: GalvatronStrategy, batch: GalvatronBatch) -> tuple[float, ...]:
        """Seconds of embedding and head for one micro-batch, by stage, without synchronisation."""
        parts = (self.model.ends,) if s.stages == 1 else (self.model.first, self.model.last)
        samples = batch.local(s)
        forward = self.model.ends_seconds(samples / s.ranks) / len(parts)
        gather_seconds = 0.0
        if s.tensor_ranks > 1:
            gather_seconds = self.cluster.all_gather[s.ranks].seconds(
                samples * self.model.hidden_bytes
            )
            gather_seconds *= 2 / len(parts)
        ring = self._ring(s.state_degree, neighbours=s.tensor_ranks == 1 or s.replicas == 1)
        ring *= (s.state_degree - 1) / s.state_degree
        times = []
        for part in parts:
            gather = part.states[s.tensor_ranks] / STATES / 4 * ring if s.zero3 else 0.0
            once, twice = (self._hidden(gather, c) for c in (forward, BACKWARD * forward))
            times.append(once + twice + gather_seconds)
        return (times[0], *[0.0] * (s.stages - 2), *times[1:])

    def layer_bytes(self, s: GalvatronStrategy, batch: GalvatronBatch, stage: int) -> int:
        """States and saved activations of one layer in one stage, rounded up to MiB."""
        samples = batch.local(s) * (s.stages - stage)
        states = self.model.layer_states_bytes / s.tensor_ranks * state_share(s, batch)
        if s.recompute:
            saved = self.model.recomputed_bytes / s.ranks * samples
        else:
            saved = self.model.activation_bytes[s.ranks] * samples
        return ceil_mib(states + saved)

    def ends_bytes(self, s: GalvatronStrategy, batch: GalvatronBatch) -> tuple[int, ...]:
        """Bytes of embedding, head and the device's runtime, by stage."""
        samples, share = batch.local(s), state_share(s, batch)

        def part_bytes(part: PartMemory, in_flight: int) -> int:
            saved = part.activations[s.ranks] * samples * in_flight
            return ceil_mib(part.states[s.tensor_ranks] * share + saved + CONTEXT_BYTES)

        if s.stages == 1:
            return (part_bytes(self.model.ends, 1),)
        middle = [CONTEXT_BYTES] * (s.stages - 2)
        return (part_bytes(self.model.first, s.stages), *middle, part_bytes(self.model.last, 1))

    def buffer_bytes(self, stages: int, ranks: int, batch: GalvatronBatch) -> int:
        """Buffer into which tensor ranks gather hidden states, shared by all layers."""
        replicas = self.cluster.devices // stages // ranks
        samples = batch.samples / batch.micro_batches / replicas
        return int(samples * self.model.hidden_bytes / MIB) * MIB

    def _ring(self, ranks: int, neighbours: bool) -> float:
        """Seconds per byte of a ring over these ranks."""
        if ranks == 1:
            return 0.0
        whole_cluster = ranks == self.cluster.devices
        return self.cluster.ring_seconds_per_byte[ranks, neighbours or whole_cluster]

    def _split_seconds(self, s: GalvatronStrategy, size_bytes: float) -> float:
        """Collectives of hidden states between the ranks that split a layer."""
        if s.ranks == 1:
            return 0.0
        table = self.cluster.all_to_all if s.ulysses else self.cluster.all_gather
        times = (EXCHANGES if s.ulysses else GATHERS) * (RECOMPUTE_FACTOR if s.recompute else 1)
        return table[s.ranks].seconds(size_bytes) * times

    def _send_seconds(self, s: GalvatronStrategy, samples: int) -> float:
        """A layer's share of what the stages send each other."""
        if s.stages == 1:
            return 0.0
        size = 2 * s.stages * samples * self.model.hidden_bytes
        return size * self.cluster.send_seconds_per_byte[s.stages] / self.model.layers

    def _hidden(self, communication: float, computation: float) -> float:
        """Seconds of both overlapped: communication slows computation down, the rest runs alone."""
        slow = self.cluster.slowdown
        return communication + max(0.0, computation * slow - communication) / slow


def state_share(s: GalvatronStrategy, batch: GalvatronBatch) -> float:
    """Share of parameter, gradient and optimizer states on one rank."""
    if s.replicas == 1:
        return 1.0
    sharded = 1 / s.state_degree + NOISE
    unsharded_eighths = (0 if s.zero3 else 1) + (batch.micro_batches > 1)
    return (8 - unsharded_eighths) / 8 * sharded + unsharded_eighths / 8


def ceil_mib(size_bytes: float) -> int:
    """Bytes rounded up to MiB."""
    return math.ceil(size_bytes / MIB) * MIB
