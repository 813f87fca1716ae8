"""Data-parallel axes: what each device shards (ZeRO), and the cost to gather and to reduce it.

    zero3   forward   gather weights of a call │ run it │ free
            backward  gather again │ run │ reduce-scatter gradients
    dp      after the last micro-batch: all-reduce gradients

Where only a fraction of every weight is sharded over zero3, that part takes the first path and the
replicated rest the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, prod

from ...ir.compression.program import CompressionAlgorithm, CompressionProgram
from ...ir.compression.registry import COMPRESSED_OPTIMIZER_ROLE, COMPRESSED_OPTIMIZERS, PROGRAMS
from ...ir.devices.cluster import Cluster
from ...ir.lowering.overlap import in_flight_bytes
from ...ir.plan.flat_shard import FULL
from ...ir.plan.plan import Plan
from ...ir.plan.program import BUCKET_BYTES, step_bucket_bytes
from ...ir.plan.strategy import ROLES, Strategy
from ...ir.plan.workload import StageBytes
from ..execution_model import GENERATED, ExecutionModel, execution_of
from ..quantity import Whole, known
from .collective import collective_seconds
from .compressed_collective import FP32_BYTES, CompressedCost, price_optimizer, price_step
from .exchange import CompressionSubject, Exchange, ExchangeEnds, ExchangeSeconds, GroupAxis
from .exchange_ends import CallExchange, alone_seconds, bucket_messages
from .step_exchanges import pair_reductions, row_gathers, stage_pairs

Compression = Mapping[
    tuple[CompressionSubject, str], CompressionProgram
]  # by what travels, and the role it travels along

ENGINE_IN_FLIGHT_BYTES = 2**30  # gathered ahead and scattered behind by engines other than programs


class BatchAxes:
    """Sharding along the batch axes of a strategy: local bytes, and seconds to gather and
    reduce."""

    def __init__(
        self,
        strategy: Strategy,
        cluster: Cluster,
        gradient_scale: float = 1.0,
        item: int = 4,
        compression: Compression | None = None,
        compressed_optimizer: CompressionAlgorithm | None = None,
        execution: ExecutionModel = GENERATED,
    ) -> None:
        """`gradient_scale`: bytes of a sent gradient per byte of its parameter; `item`: bytes per
        element of a parameter; `compressed_optimizer`: an optimizer with its own communication;
        `execution`: what ZeRO of the framework shards, over which ranks, and when."""
        self.cluster, self.gradient_scale, self.item = cluster, gradient_scale, item
        self.execution, self.stages, self.pairs = execution, strategy.stages, stage_pairs(strategy)
        self.compression, self.compressed_optimizer = compression or {}, compressed_optimizer
        axes = [GroupAxis(r, n, strategy.stride(r)) for r, n in strategy.axes]
        sharding = [a for a in axes if ROLES[a.role].shards]
        over = execution.shards_over if sharding else ()
        self.sharded_kinds = sharded_kinds(strategy, execution)
        self.shard_axes = sharding + [a for a in axes if a.role in over]
        self.model_axes = [
            a for a in axes if a[:2] in strategy.model_axes and a not in self.shard_axes
        ]
        self.replica_axes = [
            a for a in axes if ROLES[a.role].batch and a not in self.shard_axes + self.model_axes
        ]
        self.cost_cache: dict[
            tuple[CompressionProgram | CompressionAlgorithm, float, GroupAxis, float],
            CompressedCost,
        ] = {}
        self.stage_cache: dict[
            tuple[tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]],
            ExchangeSeconds,
        ] = {}
        self.seconds_cache: dict[tuple[str, float, tuple[GroupAxis, ...]], float] = {}
        self.degree = prod(size for _, size, _ in self.shard_axes)
        self.fraction = strategy.fraction
        self.is_full = strategy.fraction == FULL
        self.remainder_axes = [] if self.is_full else self.shard_axes

    def shard_count(self, kind: str) -> int:
        """Number of shards of parameters, gradients or optimizer states (`kind`)."""
        return self.degree if kind in self.sharded_kinds else 1

    def sharded_bytes(self, amount: Whole) -> Whole:
        """Bytes of weights, gradients or states that are sharded along the ZeRO axes."""
        if self.is_full:
            return amount
        over, under = (known(amount, n, x) for n, x in zip("fj", self.fraction, strict=True))
        return amount * over // under

    def replicated_bytes(self, amount: int) -> int:
        """Bytes that are replicated along the ZeRO axes."""
        return amount - self.sharded_bytes(amount)

    def local_bytes(self, amount: Whole, kind: str) -> Whole:
        """Bytes on this device out of `amount`: its shard and the replicated rest."""
        if kind not in self.sharded_kinds:
            return amount
        shards = self.degree if isinstance(amount, int) else known(amount, "z", self.degree)
        if self.is_full:
            return amount // shards
        sharded = self.sharded_bytes(amount)
        return amount - sharded + sharded // shards

    def local_fraction(self, kind: str) -> float:
        """Fraction of the bytes on this device."""
        if kind not in self.sharded_kinds:
            return 1.0
        over, under = self.fraction
        return (under - over + over / self.degree) / under

    def stepped_bytes(
        self, weight_bytes: int, partial_bytes: Mapping[str, int], shard_replicated: bool
    ) -> int:
        """Bytes of weights whose optimizer states are on this device, before ZeRO shards them.
        `shard_replicated`: states of weights replicated along a model axis (`partial_bytes` there)
        are sharded along it too."""
        bytes_here = float(weight_bytes)
        for role, size, _ in self.model_axes if shard_replicated else ():
            bytes_here -= partial_bytes.get(role, 0) * (1 - 1 / size)
        return int(max(bytes_here, 0.0))

    def collective_seconds(self, kind: str, amount: float, axes: Sequence[GroupAxis]) -> float:
        key = kind, amount, tuple(axes)
        if key not in self.seconds_cache:
            self.seconds_cache[key] = sum(
                float(collective_seconds(kind, amount, axis.group, self.cluster)) for axis in axes
            )
        return self.seconds_cache[key]

    def exchange_seconds(self, exchange: Exchange, small: float = 0.0) -> float:
        """Seconds of a collective, compressed along the axes with a program; the fraction `small`
        in small tensors stays uncompressed."""
        _, kind, amount, axes, messages = exchange
        if not self.compression and self.compressed_optimizer is None:
            return messages * self.collective_seconds(kind, amount / messages, axes)
        seconds = 0.0
        for axis in axes:
            priced = self.compressed_cost(exchange, axis, small)
            plain = messages * self.collective_seconds(kind, amount / messages, [axis])
            seconds += plain if priced is None else priced.seconds
        return seconds

    def seconds(self, exchanges: Sequence[Exchange], small: float = 0.0) -> float:
        """Seconds of exchanges, one after the other."""
        seconds = 0.0
        for exchange in exchanges:
            if exchange.axes:
                seconds += self.exchange_seconds(exchange, small)
        return seconds

    def stage_seconds(self, weights: StageBytes) -> ExchangeSeconds:
        """Seconds of all exchanges of a stage's weights (cached: most candidates share them)."""
        trained, partial = weights.trained_bytes, weights.partial_gradient_bytes
        partial_here = tuple(partial[axis.role] for axis in self.model_axes)
        amounts = trained, weights.small_tensor_bytes, weights.last_call_weight_bytes
        rows = weights.sparse_bytes, weights.row_bytes, weights.replica_bytes, weights.tied_bytes
        key = weights.call_weight_bytes, amounts, partial_here, rows
        if key not in self.stage_cache:
            small = weights.small_tensor_bytes / max(trained, 1)
            per_call = weights.call_weight_bytes
            gathers, scatters = (
                [(n, self.seconds(send(amount), small)) for amount, n in per_call]
                for send in (self.call_gathers, self.call_scatters)
            )
            reduce, update_gather = (
                self.seconds(exchanges, small)
                for exchanges in (self.step_reductions(weights), self.update_gathers(weights))
            )
            paired = self.seconds(self.pair_reductions(weights))
            ends = self.exchange_ends(weights, gathers, scatters, (reduce - paired, update_gather))
            self.stage_cache[key] = ExchangeSeconds(
                sum(n * seconds for n, seconds in gathers),
                sum(n * seconds for n, seconds in gathers) - self.retained_seconds(weights, small),
                sum(n * seconds for n, seconds in scatters),
                reduce,
                update_gather,
                ends._replace(reduce=ends.reduce + paired),
            )
        return self.stage_cache[key]

    def retained_bytes(self, weights: StageBytes) -> int:
        """Bytes of weights that backward does not gather again: those of the model's last call, where
        its backward runs next."""
        keeps = self.execution.exposes_ends and self.stages == 1
        return weights.last_call_weight_bytes if keeps else 0

    def retained_seconds(self, weights: StageBytes, small: float) -> float:
        retained = self.retained_bytes(weights)
        return self.seconds(self.call_gathers(retained), small) if retained else 0.0

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of the largest message that travels beside other work."""
        if self.execution.exposes_ends:
            return in_flight_bytes(self.cluster.device)
        return ENGINE_IN_FLIGHT_BYTES

    def exchange_ends(
        self,
        weights: StageBytes,
        gathers: Sequence[tuple[int, float]],
        scatters: Sequence[tuple[int, float]],
        per_step: tuple[float, float],
    ) -> ExchangeEnds:
        """What runs beside nothing: the first gathers of forward; the last scatters of backward, and
        where the forward before it was of another micro-batch its first gathers; the last bucket of
        gradients and the first of updated weights; and all that is compressed. `gathers` and
        `scatters`: (calls, seconds each), as `weights` lists calls; `per_step`: sums of gradients,
        gathers of updated weights."""
        if self.compression or self.compressed_optimizer is not None:
            everything = [sum(n * s for n, s in each) for each in (gathers, scatters)]
            return ExchangeEnds(everything[0], sum(everything), *per_step)
        sizes = [self.sharded_bytes(amount) for amount, _ in weights.call_weight_bytes]
        before, after = (
            alone_seconds(
                [CallExchange(*pair, size * scale) for pair, size in zip(each, sizes, strict=True)],
                self.execution,
                self.in_flight_bytes,
            )
            for each, scale in ((gathers, 1.0), (scatters, self.gradient_scale))
        )
        summed, updated = (
            seconds / count
            for seconds, count in zip(per_step, self.step_buckets(weights), strict=True)
        )
        again = 0.0 if self.stages == 1 else before
        return ExchangeEnds(before, after + again, summed, updated)

    def step_buckets(self, weights: StageBytes) -> tuple[float, float]:
        """Buckets of gradients that are summed once per step, and of weights that are gathered once
        updated; 1 where they are compressed."""
        if self.compression or self.compressed_optimizer:
            return 1.0, 1.0
        if not self.execution.exposes_ends:
            updated = self.bucket_messages(weights.trained_bytes)
            return self.step_messages(weights) or inf, updated or inf
        summed = weights.dense_bytes * self.gradient_scale / self.shard_count("gradient")
        updated, most = weights.trained_bytes, BUCKET_BYTES * self.degree
        return (
            max(1.0, summed / step_bucket_bytes(summed)),
            max(1.0, updated / step_bucket_bytes(updated, most)),
        )

    def step_messages(self, weights: StageBytes) -> int:
        """Messages that gradients are reduced in once per step: buckets, or those of calls whose
        gradients are shards; 0 where the framework does not say."""
        if self.execution.calls_alone and "gradient" in self.sharded_kinds:
            return sum(n for _, n in weights.call_weight_bytes)
        return self.bucket_messages(weights.dense_bytes)

    def bucket_messages(self, weight_bytes: int) -> int:
        """Buckets of weights, or of their gradients; 0 where the framework does not say."""
        ranks = prod(axis.size for axis in (*self.shard_axes, *self.replica_axes))
        return bucket_messages(self.execution, weight_bytes / self.item, ranks)

    def compressed_cost(
        self, exchange: Exchange, axis: GroupAxis, small: float = 0.0
    ) -> CompressedCost | None:
        """Cost of an exchange along an axis; None where it is not compressed."""
        subject, _, amount, *_ = exchange
        if subject is None or not amount:
            return None
        program = self.program(subject, axis.role)
        if program is None:
            return None
        key = program, amount, axis, small
        if key not in self.cost_cache:
            elements = int(
                amount / self.item / (self.gradient_scale if subject == "gradients" else 1)
            )
            where = axis.group, self.cluster, small
            if isinstance(program, CompressionAlgorithm):
                self.cost_cache[key] = price_optimizer(program, elements, *where)
            else:
                elements //= axis.size if program.collective == "all_gather" else 1
                self.cost_cache[key] = price_step(program, elements, *where)
        return self.cost_cache[key]

    @property
    def late(self) -> bool:
        """Whether the optimizer steps on gradients of the step before."""
        return self.compressed_optimizer is not None and self.compressed_optimizer.late

    def optimizer_reduces(self, role: str) -> bool:
        """Whether the optimizer itself reduces gradients along an axis."""
        return self.compressed_optimizer is not None and role == COMPRESSED_OPTIMIZER_ROLE

    def program(
        self, subject: CompressionSubject, role: str
    ) -> CompressionProgram | CompressionAlgorithm | None:
        """What compresses gradients or weights along an axis."""
        if self.optimizer_reduces(role):
            return self.compressed_optimizer
        return self.compression.get((subject, role))

    def compression_bytes(self, weight_bytes: int, small_bytes: int) -> int:
        """Bytes that compression keeps between steps for trained weights: error-feedback residuals,
        and for compressed weights the replica and the exact shard that the optimizer updates."""
        total, part = 0, weight_bytes * self.gradient_scale * self.local_fraction("optimizer")
        for subject, role in self.compression:
            (axis,) = (a for a in (*self.replica_axes, *self.shard_axes) if a.role == role)
            gathered = subject == "weights" or axis in self.shard_axes
            exchange = Exchange(subject, "", weight_bytes if gathered else part, [axis])
            priced = self.compressed_cost(exchange, axis, small_bytes / max(weight_bytes, 1))
            total += priced.state_bytes if priced else 0
            if subject == "weights" and "parameter" not in ROLES[role].shards:
                total += weight_bytes // self.item * FP32_BYTES + self.local_bytes(
                    weight_bytes, "optimizer"
                )
        return total

    def call_gathers(self, amount: int) -> Sequence[Exchange]:
        """Gathers of the weights of one call, before its forward and before its backward."""
        if "parameter" not in self.sharded_kinds:
            return ()
        return (Exchange("weights", "all_gather", self.sharded_bytes(amount), self.shard_axes),)

    def call_scatters(self, amount: int) -> Sequence[Exchange]:
        """Reduce-scatters of the gradients of one call, after its backward."""
        if "gradient" not in self.sharded_kinds:
            return ()
        kind, scale = self.execution.scattering(self.sharded_kinds), self.gradient_scale
        return (Exchange("gradients", kind, self.sharded_bytes(amount) * scale, self.shard_axes),)

    def step_reductions(self, weights: StageBytes) -> Sequence[Exchange]:
        """Reductions of gradients once per step: over replica axes, over model axes along which
        they are partial, and of what ZeRO has not scattered yet; rows of tables are gathered, and
        gradients and values of replicas of experts travel to their homes and back."""
        weight_bytes, partial_bytes = weights.dense_bytes, weights.partial_gradient_bytes
        scale = self.gradient_scale
        part = scale * self.local_fraction("optimizer")
        messages, summed = self.step_messages(weights) or 1, weight_bytes * part
        exchanges = [Exchange("gradients", "all_reduce", summed, self.replica_axes, messages)]
        exchanges += [
            Exchange(None, "all_reduce", partial_bytes[axis.role] * part, [axis])
            for axis in self.model_axes
        ]
        if "optimizer" in self.sharded_kinds and "gradient" not in self.sharded_kinds:
            whole, kind = weight_bytes * scale, self.execution.scattering(self.sharded_kinds)
            exchanges += [Exchange("gradients", kind, whole, self.shard_axes, messages)]
        rest = self.replicated_bytes(weight_bytes) * scale
        exchanges.append(Exchange(None, "all_reduce", rest, self.remainder_axes))
        experts = [axis for axis in self.model_axes if ROLES[axis.role].experts]
        sent = weights.replica_bytes * (1 + scale)
        exchanges.append(Exchange(None, "all_to_all", sent, experts if sent else []))
        rows = row_gathers(weights.row_bytes, [*self.replica_axes, *self.shard_axes])
        return [*exchanges, *self.pair_reductions(weights), *rows]

    def pair_reductions(self, weights: StageBytes) -> Sequence[Exchange]:
        """Sums of gradients that two stages have of the same weights, after all others."""
        return pair_reductions(
            weights, self.gradient_scale * self.local_fraction("optimizer"), self.pairs
        )

    def update_gathers(self, weights: StageBytes) -> Sequence[Exchange]:
        """Gathers of updated weights from their owners, once per step."""
        if "optimizer" not in self.sharded_kinds or "parameter" in self.sharded_kinds:
            return ()
        messages = self.bucket_messages(weights.trained_bytes) or 1
        return (
            Exchange("weights", "all_gather", weights.trained_bytes, self.shard_axes, messages),
        )


def sharded_kinds(strategy: Strategy, execution: ExecutionModel) -> frozenset[str]:
    """What ZeRO shards between calls: of "parameter", "gradient" and "optimizer" what its stage says,
    less what the framework keeps whole until the end of a step."""
    kinds = frozenset(s for role, _ in strategy.axes for s in ROLES[role].shards)
    if kinds and execution.whole_in_pipelines and strategy.stages > 1:
        return frozenset({"optimizer"})
    whole_gradients = execution.reduces_per_step and "parameter" not in kinds
    return kinds - {"gradient"} if whole_gradients else kinds


def axes_of(
    plan: Plan, strategy: Strategy, item: int, cluster: Cluster | None = None, grouped: bool = False
) -> BatchAxes:
    """A plan's batch axes of a strategy, compressed as it says; `grouped`: see `execution_of`."""
    compression: Compression = {
        (c.subject, c.role): PROGRAMS[c.program]
        for c in plan.compression
        if c.strategy == strategy and c.subject in ("gradients", "weights")
    }
    algorithm = COMPRESSED_OPTIMIZERS.get(plan.optimizer.name)
    execution = execution_of(plan.engine, plan.optimizer, plan.gradient_precision, item, grouped)
    scale = (execution.gradient_item_bytes or item) / item
    return BatchAxes(
        strategy, cluster or plan.cluster, scale, item, compression, algorithm, execution
    )
