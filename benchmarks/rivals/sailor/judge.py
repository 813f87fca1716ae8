"""Step time, dollars and memory of a plan, by the formulas of Sailor's simulator (SOSP 2025).

They are kept as they are: gradients are reduced after the pipeline has drained, only one layer of
a stage is updated, and a stage sends back the output of its own first layer. The search shares no
code with this file, only constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import msgspec

from plait.benchmarks.rivals.sailor.plan import SailorPipeline, SailorPlan, TensorGroup
from plait.benchmarks.rivals.sailor.profile import FLOAT_BYTES, Cloud, End, Measured, SailorProfile

STATES = 24  # bytes of a parameter: weight, gradient, Adam's two, communication and a copy
ONE_RING_BYTES = 5e8  # larger messages are reduced one after the other
DENSE_DEGREE = 4  # gradients are divided by at most as many ranks of a tensor group

Replicas = Sequence[TensorGroup]
Fleet = dict[str, dict[str, int]]  # GPUs by zone and kind


class SailorJudge(msgspec.Struct, frozen=True):
    """Judges plans for one model in one cloud."""

    profile: SailorProfile
    cloud: Cloud

    def step_seconds(self, plan: SailorPlan) -> float:
        pipelines = plan.pipelines
        slowest = max(self.pipeline_seconds(p, plan) for p in pipelines)
        return slowest + self.inside_seconds(plan) + self.across_seconds(plan)

    def micro_batches(self, plan: SailorPlan) -> int:
        """Micro-batches of every replica."""
        replicas = len(plan.pipelines[-1].replicas[0])
        return ceil(self.profile.samples / (plan.micro_batch * replicas * len(plan.pipelines)))

    def pipeline_seconds(self, pipeline: SailorPipeline, plan: SailorPlan) -> float:
        stages = list(zip(pipeline.spans, pipeline.replicas, strict=True))
        busy, update = [], 0.0
        for (first, last), replicas in stages:
            tables = [
                self.profile.seconds[Measured(r.gpu, plan.micro_batch, r.degree)]
                for r in set(replicas)
            ]
            busy.append(max(float(table.busy[first:last].sum()) for table in tables))
            update = max(update, *(float(table.update[first]) for table in tables))
        network = self.network_seconds(pipeline, plan.micro_batch)
        slowest = max(c + n for c, n in zip(busy, network, strict=True))
        return (self.micro_batches(plan) - 1) * slowest + sum(network) + sum(busy) + update

    def network_seconds(self, pipeline: SailorPipeline, micro_batch: int) -> list[float]:
        """Seconds for which every stage sends, for one micro-batch."""
        sent: list[float] = self.profile.sent_bytes.tolist()
        stages = len(pipeline.layers)
        spans, replicas = pipeline.spans, pipeline.replicas
        if stages == 1:
            return [0.0]
        forward = [
            self._send_seconds(micro_batch * sent[spans[i][1] - 1], replicas[i], replicas[i + 1])
            for i in range(stages - 1)
        ]
        backward = [
            self._send_seconds(micro_batch * sent[spans[i][0]], replicas[i], replicas[i - 1])
            for i in range(1, stages)
        ]
        middle = [a + g for a, g in zip(forward[1:], backward[:-1], strict=True)]
        first = forward[0] if stages <= 3 else 2 * forward[0]
        return [first, *middle, 2 * backward[-1]]

    def _send_seconds(self, size_bytes: float, senders: Replicas, receivers: Replicas) -> float:
        pairs = {(one, receivers[j % len(receivers)]) for j, one in enumerate(senders)}
        ends = {(self._end(one), self._end(other)) for one, other in pairs}
        return max(self.cloud.links[pair].seconds(size_bytes) for pair in ends)

    def _end(self, group: TensorGroup) -> End:
        gpus = min(group.degree, self.cloud.gpus_per_machine[group.gpu])
        return End(group.zone, group.gpu, gpus)

    def inside_seconds(self, plan: SailorPlan) -> float:
        """The longest reduction of gradients between neighbouring replicas of a stage."""
        longest = 0.0
        for pipeline in plan.pipelines:
            for (first, last), replicas in zip(pipeline.spans, pipeline.replicas, strict=True):
                degree = min(DENSE_DEGREE, *(r.degree for r in replicas))
                size = float(self.profile.weight_bytes[first:last].sum()) / degree
                for one, other in set(pairwise(replicas)):
                    longest = max(longest, self._ring(size, len(replicas), one, other))
        return longest

    def across_seconds(self, plan: SailorPlan) -> float:
        """The longest reduction of a stage's gradients over pipelines."""
        pipeline = max(plan.pipelines, key=lambda p: len(p.layers))
        return max(
            self._ring(
                float(self.profile.weight_bytes[first:last].sum()), len(plan.pipelines), one, one
            )
            for (first, last), replicas in zip(pipeline.spans, pipeline.replicas, strict=True)
            for one in set(replicas)
        )

    def _ring(self, size: float, ranks: int, one: TensorGroup, other: TensorGroup) -> float:
        """Seconds of a ring over GPUs of two groups, in messages of limited size."""
        if ranks <= 1:
            return 0.0
        ends = (End(one.zone, one.gpu, 1), End(other.zone, other.gpu, 1))
        whole, rest = divmod(size, ONE_RING_BYTES)
        sizes = [ONE_RING_BYTES] * int(whole) + [rest] * (rest > 0)
        link = self.cloud.links[ends]
        return sum(2 * (ranks - 1) * link.seconds(size / ranks) for size in sizes)

    def dollars(self, plan: SailorPlan) -> float:
        """Dollars of a step: GPUs by time, bytes between zones by amount."""
        rate = sum(g.degree * self.cloud.dollars_per_second[g.gpu] for g in plan.groups())
        traffic = sum(self.traffic_dollars(p, plan) for p in plan.pipelines)
        return self.step_seconds(plan) * rate + traffic

    def traffic_dollars(self, pipeline: SailorPipeline, plan: SailorPlan) -> float:
        profile, price, spans = self.profile, self.cloud.dollars_per_byte, pipeline.spans
        sent = 0.0
        for i, (one, other) in enumerate(pairwise(pipeline.replicas)):
            pairs = [(r.zone, other[j % len(other)].zone) for j, r in enumerate(one)]
            pairs += [(r.zone, one[j % len(one)].zone) for j, r in enumerate(other)]
            size = plan.micro_batch * float(profile.sent_bytes[spans[i][1] - 1])
            sent += self.micro_batches(plan) * sum(price[pair] for pair in pairs) * size
        for (first, last), replicas in zip(spans, pipeline.replicas, strict=True):
            ranks = len(replicas)
            around = sum(
                price[r.zone, replicas[(j + 1) % ranks].zone] for j, r in enumerate(replicas)
            )
            weights = float(profile.weight_bytes[first:last].sum())
            sent += around * 2 * (ranks - 1) * weights / ranks
        return sent

    def too_large(self, plan: SailorPlan) -> bool:
        """Whether a GPU lacks the memory for its stage."""
        for pipeline in plan.pipelines:
            stages = len(pipeline.layers)
            for i, (first, last) in enumerate(pipeline.spans):
                for group in set(pipeline.replicas[i]):
                    sizes = self.profile.sizes[group.degree]
                    size = STATES * float(sizes.parameters[first:last].sum())
                    saved = float(sizes.activation_floats[first:last].sum())
                    size += FLOAT_BYTES * plan.micro_batch * (stages - i) * saved
                    size += 2e9 if group.degree == 1 else 3e9
                    if size > self.cloud.memory_bytes[group.gpu]:
                        return True
        return False

    def over_fleet(self, plan: SailorPlan, fleet: Fleet) -> bool:
        """Whether the plan uses GPUs that the fleet lacks, or groups that no machine holds."""
        used: Counter[tuple[str, str]] = Counter()
        for group in plan.groups():
            used[group.zone, group.gpu] += group.degree
        whole = all(self.cloud.gpus_per_machine[g.gpu] % g.degree == 0 for g in plan.groups())
        return not whole or any(n > fleet.get(z, {}).get(g, 0) for (z, g), n in used.items())
