"""Candidates of the search: decisions for all calls, the points at which they are priced, their cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import msgspec

from ...ir.plan.memory_action import KEEP, MemoryAction
from ...ir.plan.schedules.registry import splits_backward
from ...ir.plan.strategy import Strategy
from .strategy_space import ModelAxes


class CallPoint(NamedTuple):
    """What a call is priced at: `samples` per device, under model axes and a memory action, its
    backward at once or in two parts."""

    model_axes: ModelAxes
    samples: int
    memory: MemoryAction = KEEP
    splits_backward: bool = False


class ReplicaPoint(NamedTuple):
    """The part of a run point that concerns one replica of the model.

    Strategies that differ in the roles of their batch axes alone share it, and with it the prices
    of calls and the costs of stages. `samples`: of a replica, per step.
    """

    model_axes: ModelAxes
    samples: int
    micro_batches: int
    memory: MemoryAction = KEEP
    stages: int = 1
    model_chunks: int = 1
    schedule: str = "1f1b"

    @property
    def samples_per_device(self) -> int:
        """Samples of one micro-batch."""
        return self.samples // self.micro_batches

    def call_point(self, per_step: bool = False) -> CallPoint:
        """The point of a call that runs for every micro-batch, or once `per_step`."""
        samples = self.samples if per_step else self.samples_per_device
        splits = splits_backward(self.schedule) and not per_step
        return CallPoint(self.model_axes, samples, self.memory, splits)


class RunPoint(msgspec.Struct, frozen=True):
    """What is priced: layers of one strategy and memory action, and how often a step runs them.

    `global_batch`: samples per step; `model_chunks`: per pipeline stage.
    """

    strategy: Strategy
    global_batch: int
    micro_batches: int
    memory: MemoryAction = KEEP
    model_chunks: int = 1
    schedule: str = "1f1b"

    @property
    def divides(self) -> bool:
        """Whether replicas and micro-batches share the batch evenly."""
        return self.global_batch % (self.strategy.batch_degree() * self.micro_batches) == 0

    @property
    def samples_per_replica(self) -> int:
        """Samples of one replica per step."""
        return self.global_batch // self.strategy.batch_degree()

    @property
    def samples_per_device(self) -> int:
        """Samples of one replica per micro-batch."""
        return self.samples_per_replica // self.micro_batches

    @property
    def replica(self) -> ReplicaPoint:
        """The part that does not depend on the roles of the batch axes."""
        strategy = self.strategy
        return ReplicaPoint(
            strategy.model_axes,
            self.samples_per_replica,
            self.micro_batches,
            self.memory,
            strategy.stages,
            self.model_chunks,
            self.schedule,
        )


class Decision(msgspec.Struct, frozen=True):
    """Strategy and memory action of calls `first` to `last - 1`; batch-only calls save nothing."""

    first: int
    last: int
    strategy: Strategy
    memory: MemoryAction


class Assignment(msgspec.Struct, frozen=True):
    """Decisions for all calls in order, run on micro-batches in `model_chunks` per stage, in the order
    of a schedule."""

    decisions: tuple[Decision, ...]
    global_batch: int
    micro_batches: int
    model_chunks: int = 1
    schedule: str = "1f1b"

    @staticmethod
    def uniform(point: RunPoint, calls: int) -> Assignment:
        """One decision for all calls of a model."""
        decision = Decision(0, calls, point.strategy, point.memory)
        return Assignment(
            (decision,), point.global_batch, point.micro_batches, point.model_chunks, point.schedule
        )

    def point(self, decision: Decision) -> RunPoint:
        """The point at which the calls of a decision are priced."""
        return RunPoint(
            decision.strategy,
            self.global_batch,
            self.micro_batches,
            decision.memory,
            self.model_chunks,
            self.schedule,
        )

    @property
    def first_point(self) -> RunPoint:
        """The point of the first call."""
        return self.point(self.decisions[0])

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        return tuple(dict.fromkeys(d.strategy for d in self.decisions))

    def at(self, call: int) -> Decision:
        """The decision of one call."""
        return next(d for d in self.decisions if d.first <= call < d.last)


class Candidate(msgspec.Struct, frozen=True, dict=True, eq=False):
    """An assignment with its predicted cost.

    `bounds`: first call of every model chunk, then the number of calls; `bubble`: idle fraction of
    the pipeline; `measure_peak`: works out the bytes of the fullest device, most of what a candidate
    costs to price: many are too slow for it to matter.
    """

    assignment: Assignment
    bounds: tuple[int, ...]
    step_seconds: float
    bubble: float
    measure_peak: Callable[[], int]

    @cached_property
    def peak_bytes(self) -> int:
        """Bytes of the fullest device."""
        return self.measure_peak()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return self.assignment.decisions

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        return self.assignment.strategies

    @property
    def micro_batches(self) -> int:
        return self.assignment.micro_batches

    @property
    def model_chunks(self) -> int:
        """Model chunks per stage."""
        return self.assignment.model_chunks

    @property
    def schedule(self) -> str:
        return self.assignment.schedule

    @property
    def strategy_text(self) -> str:
        return " | ".join(map(str, self.strategies))

    @property
    def memory_text(self) -> str:
        """Memory actions in use, joined: `keep`, `keep+recompute`."""
        return "+".join(sorted({str(d.memory) for d in self.decisions}))
