"""Step time and memory of a plan by the formulas of Aceso's cost model (EuroSys 2024).

They are kept as they are: gradient reduction and the optimizer take no time, and a stage sends
what its last operator gives under the tensor degree of its first. The search sums and chooses by
code of its own; it shares what an operator keeps, where runs end, and the resharding tables.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import msgspec

from plait.benchmarks.rivals.aceso.plan import AcesoPlan, AcesoStage, Degrees
from plait.benchmarks.rivals.aceso.profile import MISSING, AcesoModel, Operators, Setting, Variant
from plait.benchmarks.rivals.aceso.resharding import reshard_ms

UNSAVED = ("enc-attention-softmax", "-bn3", "-downsample")  # operators that keep nothing
DROPOUT_FACTOR = 1.5
CLOSING = ("enc-1st-layernorm", "-conv1")  # operators before which a recomputed run ends


class AcesoJudge(msgspec.Struct, frozen=True):
    """Judges plans of one setting."""

    model: AcesoModel
    setting: Setting

    def step_seconds(self, plan: AcesoPlan) -> float:
        micro_batches = self.setting.global_batch // plan.micro_batch
        times = self.stage_us(plan)
        return ((micro_batches - 1) * max(times) + sum(times)) * 1e-6

    def stage_us(self, plan: AcesoPlan) -> list[float]:
        """Microseconds of every stage for one micro-batch."""
        ends = list(accumulate((len(s.degrees) for s in plan.stages), initial=0))
        gpus = list(accumulate((s.gpus for s in plan.stages), initial=0))
        return [
            self._one_stage_us(plan.micro_batch, stage, first, before)
            for stage, first, before in zip(plan.stages, ends[:-1], gpus[:-1], strict=True)
        ]

    def _one_stage_us(
        self, micro_batch: int, stage: AcesoStage, first: int, gpus_before: int
    ) -> float:
        busy = 0.0
        for i, (degrees, again) in enumerate(zip(stage.degrees, stage.recompute, strict=True)):
            table = self._operators(micro_batch, degrees)
            forward = float(table.forward_us[first + i]) if table else MISSING
            busy += forward * (1 + again) + (float(table.backward_us[first + i]) if table else 0)
        machine, last = self.setting.gpus_per_machine, first + len(stage.degrees) - 1
        input_mb = self._size(micro_batch, stage.degrees[0], "input_mb", first)
        ahead = stage.degrees[-1]._replace(tensor=stage.degrees[0].tensor)
        output_mb = self._size(micro_batch, ahead, "output_mb", last)
        before, after = gpus_before, gpus_before + stage.gpus
        sent = self.model.send_us(input_mb, before > 0 and before % machine == 0)
        sent += self.model.send_us(output_mb, after % machine == 0)
        return busy + sent + 1000 * self._reshard_ms(micro_batch, stage, first)

    def _operators(self, micro_batch: int, degrees: Degrees) -> Operators | None:
        key = Variant(micro_batch // degrees.data, degrees.tensor, degrees.algorithm)
        return self.model.variants.get(key)

    def _size(self, micro_batch: int, degrees: Degrees, column: str, operator: int) -> float:
        table = self._operators(micro_batch, degrees)
        return MISSING if table is None else float(getattr(table, column)[operator])

    def _reshard_ms(self, micro_batch: int, stage: AcesoStage, first: int) -> float:
        """Milliseconds of moving values between the layouts of neighbours, both directions."""
        return sum(
            reshard_ms(
                self.model, i + 1, (one, other), self._size(micro_batch, other, "input_mb", i + 1)
            )
            for i, (one, other) in enumerate(pairwise(stage.degrees), first)
        )

    def stage_mb(self, plan: AcesoPlan) -> list[float]:
        """Peak MB of every stage."""
        ends = list(accumulate((len(s.degrees) for s in plan.stages), initial=0))
        return [
            self._one_stage_mb(plan.micro_batch, stage, ends[i], len(plan.stages) - 1 - i)
            for i, stage in enumerate(plan.stages)
        ]

    def _one_stage_mb(self, micro_batch: int, stage: AcesoStage, first: int, after: int) -> float:
        def column(name: str) -> list[float]:
            return [
                self._size(micro_batch, d, name, first + i) for i, d in enumerate(stage.degrees)
            ]

        names = self.model.names[first : first + len(stage.degrees)]
        saved = [
            size * activation_factor(name)
            for name, size in zip(names, column("activations_mb"), strict=True)
        ]
        again, peak = _recomputed_mb(names, saved, stage.recompute)
        weights = sum(column("weights_mb"))
        lasting = column("input_mb")[0] + sum(saved) - again
        forward = max(column("reserved_forward_mb")[:-1], default=0.0)
        backward = max(column("reserved_backward_mb")[:-1], default=0.0)
        reserved = max(forward + backward, weights)
        states = weights * self.model.family.state_copies
        return states + lasting * (after + 1) + peak + reserved

    def too_large(self, plan: AcesoPlan) -> bool:
        return max(self.stage_mb(plan)) > self.setting.memory_limit_mb

    def faults(self, plan: AcesoPlan) -> list[str]:
        """Rules of the space that the plan breaks."""
        return [
            text
            for broken, text in (
                (sum(len(s.degrees) for s in plan.stages) != len(self.model.names), "operators"),
                (sum(s.gpus for s in plan.stages) > self.setting.gpus, "GPUs"),
                (any(len({d.gpus for d in s.degrees}) > 1 for s in plan.stages), "degrees"),
                (len(plan.stages) > self.setting.max_stages, "stages"),
                (plan.micro_batch not in self.setting.micro_batches, "micro-batch"),
                (self._unmeasured(plan), "samples that were not measured"),
                (self._splits_machine(plan), "a stage over two machines"),
            )
            if broken
        ]

    def _unmeasured(self, plan: AcesoPlan) -> bool:
        used = {d for stage in plan.stages for d in stage.degrees}
        divides = all(plan.micro_batch % d.data == 0 for d in used)
        return not divides or any(self._operators(plan.micro_batch, d) is None for d in used)

    def _splits_machine(self, plan: AcesoPlan) -> bool:
        machine = self.setting.gpus_per_machine
        gpus = list(accumulate((s.gpus for s in plan.stages), initial=0))
        return any(a // machine != (b - 1) // machine for a, b in pairwise(gpus))


def activation_factor(name: str) -> float:
    """Times the measured activations that Aceso counts for an operator."""
    if (any(part in name for part in UNSAVED) and "0-0-downsample" not in name) or name == "bn1":
        return 0.0
    if name == "enc-attention-dropout":
        return DROPOUT_FACTOR
    return 1.0


def _recomputed_mb(
    names: tuple[str, ...], saved: list[float], flags: tuple[bool, ...]
) -> tuple[float, float]:
    """MB that recomputed operators do not keep, and the most that a run of them holds at once."""
    total, run, peak = 0.0, 0.0, 0.0
    for i in range(len(names) - 1):
        closes = any(part in names[i + 1] for part in CLOSING)
        if flags[i] and flags[i + 1]:
            total += 0.0 if closes else saved[i]
            run += saved[i]
            peak = max(peak, run)
            if closes or i + 2 == len(names):
                run = 0.0
        else:
            run = 0.0
    return total, peak
