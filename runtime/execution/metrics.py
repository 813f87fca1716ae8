"""Numbers of every training step, for any logger."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...ir.capture.batch import batch_size, leaves
from ...ir.lowering.cast import PRECISIONS
from ...ir.plan.plan import Plan
from ..comm.program_groups import MeshGroups
from ..state.experts.balance import ExpertBalance
from ..state.gradients import total_norm
from ..state.parameters import ParameterStore
from .batch import Batch


@dataclass(frozen=True)
class StepMetrics:
    """One step: `loss` is the sum over its batches; `grad_norm` that before clipping, NaN where nobody
    asked for it. `seconds` between the ends of steps; `tokens_per_second` counts the elements of the
    batch's largest tensor of integers (None without one); `mfu` by the plan's operations (None without
    a plan). Of this rank: `sent_bytes` in the step, `peak_bytes` since the start (device, or process
    on a CPU), `compile_seconds` of the step that inductor took; `expert_loads`: by layer, how often
    its tokens chose each expert, where those are on several ranks. `expert_ratios`: by layer, rows of
    the rank that got most over the mean of all, where experts may have replicas."""

    step: int
    loss: float
    grad_norm: float
    seconds: float
    samples_per_second: float
    tokens_per_second: float | None
    mfu: float | None
    sent_bytes: int
    peak_bytes: int
    compile_seconds: float = 0.0
    expert_loads: Mapping[str, Sequence[int]] = field(default_factory=dict[str, Sequence[int]])
    expert_ratios: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass
class _Amounts:
    """What a step has gathered so far."""

    losses: list[Tensor]
    samples: int = 0
    tokens: int = 0


class StepMeter:
    """Measures the steps of a program; `hooks` get the numbers of each."""

    def __init__(self, groups: MeshGroups, device: torch.device) -> None:
        self.groups, self.device = groups, device
        self.hooks: list[Callable[[StepMetrics], None]] = []
        self.norm: Tensor | None = None
        self.plan: Plan | None = None
        self.amounts = _Amounts([])
        self.sent, self.ended = 0, time.perf_counter()
        self.experts: ExpertBalance | None = None  # what it observed in the last step
        self.compiling: Callable[[], float] = lambda: 0.0  # seconds since the start
        self.compiled = 0.0
        self.finished: Callable[[], StepMetrics] | None = None

    def begin(self, batch: Batch) -> None:
        """Count a batch."""
        tensors = [t for _, t in leaves(batch)]
        integers = [t.numel() for t in tensors if not t.is_floating_point() and t.dim() > 1]
        self.amounts.samples += batch_size(tensors)
        self.amounts.tokens += max(integers, default=0)

    def add_loss(self, loss: Tensor) -> None:
        """Note the loss of a batch."""
        self.amounts.losses.append(loss)

    def measure_norm(self, store: ParameterStore) -> None:
        """The norm of all gradients, where a hook wants it and clipping has not given it."""
        if self.hooks and self.norm is None and store.compressed_optimizer is None:
            self.norm = total_norm(store, self.groups, 2.0)

    def end(self, step: int) -> None:
        """End a step and call the hooks."""
        now, sent = time.perf_counter(), sum(self.groups.sent_bytes.values())
        seconds, amounts, norm = now - self.ended, self.amounts, self.norm
        step_bytes, compiled = sent - self.sent, self.compiling()
        compile_seconds, experts = compiled - self.compiled, self.experts
        loads, ratios = ({}, {}) if experts is None else (experts.loads, experts.ratios)
        self.finished = lambda: replace(
            self.numbers(step, seconds, amounts, norm, step_bytes),
            compile_seconds=compile_seconds,
            expert_loads={path: tuple(counts.tolist()) for path, counts in loads.items()},
            expert_ratios=ratios,
        )
        self.ended, self.sent, self.norm, self.amounts = now, sent, None, _Amounts([])
        self.compiled = compiled
        if self.hooks:
            numbers = self.finished()
            for hook in self.hooks:
                hook(numbers)

    def last(self) -> StepMetrics | None:
        """The numbers of the last step; waits for the device to finish it."""
        return None if self.finished is None else self.finished()

    def numbers(
        self, step: int, seconds: float, amounts: _Amounts, norm: Tensor | None, sent: int
    ) -> StepMetrics:
        return StepMetrics(
            step,
            sum(float(loss) for loss in amounts.losses),
            float("nan") if norm is None else float(norm),
            seconds,
            amounts.samples / seconds,
            amounts.tokens / seconds if amounts.tokens else None,
            None if self.plan is None else model_utilisation(self.plan, amounts.samples, seconds),
            sent,
            peak_bytes(self.device),
        )


def model_utilisation(plan: Plan, samples: int, seconds: float) -> float:
    """Operations of the model per second, as a fraction of the peak rate of all devices."""
    rate = plan.cluster.device.peak(PRECISIONS[plan.precision]) * plan.cluster.devices
    return plan.prediction.model_flops * samples / plan.global_batch / seconds / rate


def peak_bytes(device: torch.device) -> int:
    """Most bytes so far: of tensors on a CUDA device, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
