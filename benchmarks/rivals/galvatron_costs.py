"""Time and memory of layers, embedding and head, by Galvatron's formulas.

Formulas of the cost model in Hetu-Galvatron 2.4 (`core/cost_model/components`): mixed precision,
Megatron sequence parallelism, ZeRO-2 for replicas that do not use ZeRO-3, asynchronous reduction of
gradients, 1F1B. They have holes that are kept here (ranks of Ulysses alone reduce gradients for
nothing; ZeRO-3 gathers once).
"""

from __future__ import annotations

import math

import msgspec

from plait.benchmarks.rivals.galvatron_profile import MIB, GalvatronCluster, GalvatronModel, Memory
from plait.planner.interop.galvatron_strategy import GalvatronStrategy

CONTEXT_BYTES = 1024 * MIB
GATHERS, EXCHANGES = 6, 4  # of hidden states in one layer, by tensor ranks and by Ulysses
AGAIN = 1.5  # times as many where the forward is repeated
STATES = 4  # copies in fp32: parameter, gradient, two of the optimizer
BACKWARD = 2  # times the forward
NOISE = 0.003  # of states that ZeRO does not cut evenly


class Batch(msgspec.Struct, frozen=True):
    """A global batch in micro-batches."""

    samples: int
    micro_batches: int

    def local(self, strategy: GalvatronStrategy) -> int:
        """Samples of one micro-batch on one replica."""
        return self.samples // self.micro_batches // strategy.replicas


class Seconds(msgspec.Struct, frozen=True):
    """One micro-batch, forward and backward, without and with gradients added up over ranks."""

    plain: float
    synchronised: float


class GalvatronCosts(msgspec.Struct, frozen=True):
    """Costs of one model on one cluster."""

    model: GalvatronModel
    cluster: GalvatronCluster

    def layer_seconds(self, s: GalvatronStrategy, batch: Batch) -> Seconds:
        samples = batch.local(s)
        forward = self.model.layer_seconds(samples / s.ranks)
        backward = (BACKWARD + s.recompute) * forward
        parameter_bytes = self.model.layer_states_bytes / STATES / s.tensor_ranks  # fp32
        ring = self._ring(s.sharing, neighbours=s.tensor_ranks == 1)
        sync = (s.sharing - 1) / s.sharing * parameter_bytes * ring
        other = self._split_seconds(s, samples * self.model.hidden_bytes)
        other += sync / 2 if s.zero3 else 0.0
        other += self._send_seconds(s, samples)
        exposed = sync if s.replicas > 1 else 0.0
        slow = self.cluster.slowdown - 1
        both = max(backward, exposed) + slow * min(backward, exposed)
        return Seconds(forward + backward + other, forward + both + other)

    def ends_seconds(self, s: GalvatronStrategy, batch: Batch) -> tuple[float, ...]:
        """One micro-batch of embedding and head, by stage, without synchronisation."""
        parts = (self.model.ends,) if s.stages == 1 else (self.model.first, self.model.last)
        samples = batch.local(s)
        forward = self.model.ends_seconds(samples / s.ranks) / len(parts)
        joined = 0.0
        if s.tensor_ranks > 1:
            joined = self.cluster.all_gather[s.ranks].seconds(samples * self.model.hidden_bytes)
            joined *= 2 / len(parts)
        ring = self._ring(s.sharing, neighbours=s.tensor_ranks == 1 or s.replicas == 1)
        ring *= (s.sharing - 1) / s.sharing
        times = []
        for part in parts:
            gather = part.states[s.tensor_ranks] / STATES / 4 * ring if s.zero3 else 0.0
            once, twice = (self._hidden(gather, c) for c in (forward, BACKWARD * forward))
            times.append(once + twice + joined)
        return (times[0], *[0.0] * (s.stages - 2), *times[1:])

    def layer_bytes(self, s: GalvatronStrategy, batch: Batch, stage: int) -> int:
        """States and saved activations of one layer in one stage, in whole MiB."""
        samples = batch.local(s) * (s.stages - stage)
        states = self.model.layer_states_bytes / s.tensor_ranks * kept_share(s, batch)
        if s.recompute:
            saved = self.model.recomputed_bytes / s.ranks * samples
        else:
            saved = self.model.activation_bytes[s.ranks] * samples
        return whole(states + saved)

    def ends_bytes(self, s: GalvatronStrategy, batch: Batch) -> tuple[int, ...]:
        """Embedding, head and what the device's runtime holds, by stage."""
        samples, share = batch.local(s), kept_share(s, batch)

        def held(part: Memory, in_flight: int) -> int:
            saved = part.activations[s.ranks] * samples * in_flight
            return whole(part.states[s.tensor_ranks] * share + saved + CONTEXT_BYTES)

        if s.stages == 1:
            return (held(self.model.ends, 1),)
        middle = [CONTEXT_BYTES] * (s.stages - 2)
        return (held(self.model.first, s.stages), *middle, held(self.model.last, 1))

    def buffer_bytes(self, stages: int, ranks: int, batch: Batch) -> int:
        """What ranks of tensor parallelism gather hidden states into, one buffer for all layers."""
        replicas = self.cluster.devices // stages // ranks
        samples = batch.samples / batch.micro_batches / replicas
        return int(samples * self.model.hidden_bytes / MIB) * MIB

    def _ring(self, ranks: int, neighbours: bool) -> float:
        """Seconds per byte of a ring over so many ranks."""
        if ranks == 1:
            return 0.0
        whole_cluster = ranks == self.cluster.devices
        return self.cluster.ring_seconds_per_byte[ranks, neighbours or whole_cluster]

    def _split_seconds(self, s: GalvatronStrategy, size_bytes: float) -> float:
        """Collectives of hidden states between the ranks that split a layer."""
        if s.ranks == 1:
            return 0.0
        table = self.cluster.all_to_all if s.ulysses else self.cluster.all_gather
        times = (EXCHANGES if s.ulysses else GATHERS) * (AGAIN if s.recompute else 1)
        return table[s.ranks].seconds(size_bytes) * times

    def _send_seconds(self, s: GalvatronStrategy, samples: int) -> float:
        """A layer's share of what the stages send each other."""
        if s.stages == 1:
            return 0.0
        size = 2 * s.stages * samples * self.model.hidden_bytes
        return size * self.cluster.send_seconds_per_byte[s.stages] / self.model.layers

    def _hidden(self, communication: float, computation: float) -> float:
        """Both at once: communication slows computation down, what is left runs alone."""
        slow = self.cluster.slowdown
        return communication + max(0.0, computation * slow - communication) / slow


def kept_share(s: GalvatronStrategy, batch: Batch) -> float:
    """The share of parameter, gradient and optimizer states that one rank holds."""
    if s.replicas == 1:
        return 1.0
    cut = 1 / s.sharing + NOISE
    whole_eighths = (0 if s.zero3 else 1) + (batch.micro_batches > 1)
    return (8 - whole_eighths) / 8 * cut + whole_eighths / 8


def whole(size_bytes: float) -> int:
    return math.ceil(size_bytes / MIB) * MIB
