"""Choice of compression programs for collectives of gradients and weights.

A program is used where it saves more communication than its codecs cost. The decision is made per
mesh axis, from its links, group and bytes. The user bounds the loss of accuracy by naming an
algorithm or a quality:

    lossless   exact
    safe       every number is sent, and its error is unbiased or fed back (error feedback) to an
               optimizer that is linear in gradients (it diverges with Adam: 1-bit Adam, Tang 2021)
    all        every algorithm that a paper trained with

A lossy program must shorten the step by at least a fixed fraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ...cost_model.communication.compressed_collective import lowered
from ...cost_model.communication.data_parallel import BatchAxes
from ...cost_model.communication.exchange import CompressionSubject, Exchange, GroupAxis
from ...ir.compression.program import CompressionAlgorithm, CompressionProgram
from ...ir.compression.registry import ALGORITHMS, algorithm
from ...ir.compression.stage import Residual, Select
from ...ir.devices.cluster import Cluster
from ...ir.errors import UsageError
from ...ir.plan.flat_shard import FULL
from ...ir.plan.plan import Plan
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.unknown_name import unknown_name
from ..question.options import QUALITIES

LINEAR = ("sgd", "momentum")  # optimizers whose steps add up as gradients do
MINIMUM_GAIN = 0.05  # fraction of a step that a lossy program must save
ANY_OPTIMIZER = ("Averaged", "Sharded")  # classes that leave the optimizer to the user


class TrainedWeights(NamedTuple):
    """Trained weights of one device, whose gradients and updates are communicated.

    `gradient_scale`: bytes of a gradient per byte of its weight; `small_share`: fraction of the
    bytes in tensors too small to compress; `calls`: how many calls they belong to.
    """

    bytes: int
    item_bytes: int
    gradient_scale: float
    small_share: float
    calls: int


class CollectiveCompressor:
    """Chooses programs for the collectives of a strategy. `compress`: `none`, `auto` or the name of
    an algorithm, which is then used wherever it applies. Raises UsageError."""

    def __init__(self, compress: str, quality: str, optimizer: str) -> None:
        if quality not in QUALITIES:
            raise UsageError(unknown_name("quality", quality, QUALITIES))
        self.forced = compress not in ("none", "auto")
        if self.forced:
            algorithm_ = algorithm(compress)
            robust = tuple(p for p in algorithm_.programs if p.robust)
            self.programs = robust or runnable(algorithm_)
            if algorithm_.scores:
                raise UsageError(
                    f"{compress} scores gradients on validation data, which programs do not have: use "
                    f"Averaged of plait.runtime.compression, or krum or a trimmed mean here"
                )
            passing = any(p.payload in ("activations", "rows") for p in algorithm_.programs)
            if not self.programs and not passing:
                raise UsageError(f"{compress} is an optimizer itself (plan --optimizer)")
        else:
            allowed = permitted(quality, optimizer in LINEAR) if compress == "auto" else ()
            self.programs = tuple(allowed)

    def choose(
        self, strategy: Strategy, cluster: Cluster, weights: TrainedWeights, work_seconds: float
    ) -> dict[tuple[CompressionSubject, str], CompressionProgram]:
        """Programs by (subject, role); `work_seconds`: of a step, apart from these collectives.

        Empty for fractional sharding, where replicas of the unsharded weights must stay identical.
        """
        if not self.programs or not weights.bytes or strategy.fraction != FULL:
            return {}
        scale, item = weights.gradient_scale, weights.item_bytes
        plain = BatchAxes(strategy, cluster, scale, item)
        chosen: dict[tuple[CompressionSubject, str], CompressionProgram] = {}
        collectives = list(weight_collectives(plain, weights.bytes, weights.calls))
        step_seconds = work_seconds + sum(collective.seconds(plain) for collective in collectives)
        for collective in collectives:
            best = collective.seconds(plain) - MINIMUM_GAIN * step_seconds
            key = collective.subject, collective.axis.role
            for program in filter(collective.accepts, self.programs):
                if program.robust and refused_by(program, collective.axis.size):
                    continue
                compressed = BatchAxes(strategy, cluster, scale, item, {key: program})
                seconds = collective.seconds(compressed, weights.small_share)
                if seconds < best or (self.forced and key not in chosen):
                    chosen[key], best = program, seconds
        return chosen


class WeightCollective(NamedTuple):
    """A collective of gradients or weights: `amount` bytes, at least `times` times per step.

    `lasting`: the same tensors once per step, so that residuals can be kept between steps."""

    subject: CompressionSubject
    kind: str
    amount: float
    axis: GroupAxis
    times: int
    lasting: bool

    def seconds(self, axes: BatchAxes, small: float = 0.0) -> float:
        """Seconds per step."""
        exchange = Exchange(self.subject, self.kind, self.amount, [self.axis])
        return self.times * axes.exchange_seconds(exchange, small)

    def accepts(self, program: CompressionProgram) -> bool:
        """Whether a program can replace this collective."""
        same = (program.payload, program.collective) == (self.subject, self.kind)
        return same and (self.lasting or not is_stateful(program))


def weight_collectives(axes: BatchAxes, trained: int, calls: int) -> Iterator[WeightCollective]:
    """Collectives of a step for `trained` bytes of weights in `calls` calls."""
    optimizer_bytes = trained * axes.gradient_scale * axes.local_fraction("optimizer")
    for axis in axes.replica_axes:
        yield WeightCollective("gradients", "all_reduce", optimizer_bytes, axis, 1, True)
    for axis in axes.shard_axes:
        lasting = "gradient" not in axes.sharded_kinds
        parts = 1 if lasting else calls
        gradients = trained * axes.gradient_scale / parts
        yield WeightCollective("gradients", "reduce_scatter", gradients, axis, parts, lasting)
        lasting = "parameter" not in axes.sharded_kinds
        parts, times = (1, 1) if lasting else (calls, 2 * calls)  # forward and backward
        yield WeightCollective("weights", "all_gather", trained / parts, axis, times, lasting)


def is_stateful(program: CompressionProgram) -> bool:
    """Whether a program keeps state (e.g. a residual) between exchanges."""
    return bool(lowered(program, 2, 2).states)


def permitted(quality: str, linear: bool) -> Iterator[CompressionProgram]:
    """Programs of all algorithms that a quality allows; `linear`: the optimizer is linear in
    gradients.
    """
    for algorithm_ in ALGORITHMS.values() if quality != "lossless" else ():
        yield from (p for p in runnable(algorithm_) if quality == "all" or _is_safe(p, linear))


def _is_safe(program: CompressionProgram, linear: bool) -> bool:
    """Whether every number is sent in every step and no error is lost permanently."""
    refused = (Select,) if linear or program.payload == "weights" else (Select, Residual)
    return not program.accepts_bias and not any(isinstance(s, refused) for s in program.stages)


def check_robust(compress: str, plan: Plan) -> None:
    """Raise UsageError where a robust rule was asked for and a plan adds gradients up past it."""
    if compress in ("none", "auto") or not algorithm(compress).robust:
        return
    for strategy in plan.strategies:
        added = {role for role, size in strategy.axes if ROLES[role].batch and size > 1}
        rule = {c.role for c in plan.compression if c.strategy == strategy}
        if not added or added - rule:
            along = ", ".join(sorted(added - rule)) or "no ranks"
            raise UsageError(
                f"{compress} weighs ranks against each other, and {strategy} adds gradients up along "
                f"{along}: pin dp over more ranks than it leaves out, without zero roles"
            )


def refused_by(program: CompressionProgram, ranks: int) -> bool:
    """Whether so few ranks cannot tell whom to leave out."""
    try:
        lowered(program, 1, ranks)
    except UsageError:
        return True
    return False


def runnable(algorithm_: CompressionAlgorithm) -> tuple[CompressionProgram, ...]:
    """Programs of an algorithm that sum or average without changing the optimizer."""
    if algorithm_.optimizer not in ANY_OPTIMIZER or algorithm_.schedule.every != 1:
        return ()
    return tuple(
        p for p in algorithm_.programs if p.payload in ("gradients", "weights") and not p.robust
    )
