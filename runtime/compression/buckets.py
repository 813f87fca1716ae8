"""Compressed collectives over many tensors at once, in buckets; see `comm.buckets` for plain ones.

    compressed = CompressedBuckets(algorithm("sdp4bit"), levels, codec)
    shards = compressed.reduce_scatter(flats)     # every step the same tensors in the same order
    flats = compressed.all_gather(shards)

With names, several lists may be reduced in a step, such as those of every layer: a bucket is identified
by the tensors in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from ...ir.compression.kernel import CompressionState
from ...ir.compression.lower import lower
from ...ir.compression.program import CompressionAlgorithm, CompressionProgram, Payload
from ...ir.errors import MismatchError, UsageError
from ...ir.plan.program import BUCKET_BYTES
from ..comm.buckets import Arrival, buckets, joined, pop_joined
from ..comm.group_hierarchy import GroupHierarchy
from .backends.codec import Codec
from .drive import run_exchanges
from .exchange import SMALL_BYTES, BucketOptions, CompressedCollective
from .work import ExchangeSteps

RESIDUAL = "owed"  # stored name of errors that are added to one gradient, once
REPLICA = "replica"  # state name of the weights that all ranks have received


class TensorState(NamedTuple):
    """One tensor's slice of a bucket's state, flat and without padding.

    `by_rank`: every rank has a value of its columns; otherwise all have the same.
    """

    payload: Payload
    state: str
    tensor: str
    by_rank: bool
    value: Tensor


Members = tuple[tuple[str, int], ...]  # tensors of a bucket and their columns in it


class CompressedBuckets:
    """Exchanges of the buckets of a program, exchange as they are first needed.

    Gradients are summed (`total`) as in generated programs, which empties their lists. Tensors smaller
    than `small_bytes` are sent in fp32. Weights are gathered in fp32 once where that starts replicas.
    Raises UsageError for a payload that the algorithm has no program for.
    With the `names` of the tensors, `tensor_states` carries states over to other buckets and ranks.
    """

    def __init__(
        self,
        algorithm: CompressionAlgorithm,
        levels: GroupHierarchy,
        codec: Codec | None = None,
        total: bool = True,
        small_bytes: int = SMALL_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.algorithm, self.levels, self.codec = algorithm, levels, codec
        self.total, self.bucket_bytes = total, bucket_bytes
        self.small_bytes = (
            0 if algorithm.robust else small_bytes
        )  # whoever may lie may lie there too
        self.exchanges: dict[str, CompressedCollective] = {}
        self.saved: dict[str, Any] = {}
        self.members: dict[str, Members] = {}
        self.pending: dict[tuple[Payload, str, str], TensorState] = {}
        self.counts: Mapping[str, int] = {}
        self.first_count = 0

    def all_reduce(self, tensors: list[Tensor], names: Sequence[str] = ()) -> list[Tensor]:
        """The reduced tensors, each in its columns shape and type."""
        results, plan = (
            dict[int, Tensor](),
            list(self.split_into_buckets(tensors, names, self.bucket_bytes)),
        )
        device, kinds = _device(tensors), [(t.shape, t.dtype) for t in tensors]

        def start(bucket: str, members: list[int]) -> ExchangeSteps:
            columns = _members(names, members, [tensors[i].numel() for i in members])
            flat = pop_joined(tensors, members).view(-1)
            exchange = self.exchange("gradients", bucket, flat.numel(), columns)
            corrected = self._with_residuals(flat, columns)
            return exchange.all_reduce_steps(
                corrected, in_place=corrected is not flat or len(members) > 1
            )

        works = (start(bucket, members) for bucket, members in plan)
        for (_, members), total in zip(plan, run_exchanges(works, device), strict=True):
            parts = total.split([kinds[i][0].numel() for i in members])
            for i, part in zip(members, parts, strict=True):
                shape, dtype = kinds[i]
                results[i] = part.view(shape).to(dtype)
        return [results[i] for i in range(len(tensors))]

    def reduce_scatter(self, flats: list[Tensor], names: Sequence[str] = ()) -> list[Tensor]:
        """This rank's `1 / size` of every reduced flat tensor."""
        size, results = self.levels.all.size, dict[int, Tensor]()
        plan = list(self.split_into_buckets(flats, names, self.bucket_bytes))
        device, kinds = _device(flats), [(f.numel() // size, f.dtype) for f in flats]
        flats[:] = [flat.view(size, -1) for flat in flats]

        def start(bucket: str, members: list[int]) -> ExchangeSteps:
            columns = _members(names, members, [kinds[i][0] for i in members])
            rows = pop_joined(flats, members, 1)
            return self.exchange("gradients", bucket, rows.numel(), columns).reduce_scatter_steps(
                rows
            )

        works = (start(bucket, members) for bucket, members in plan)
        for (_, members), shard in zip(plan, run_exchanges(works, device), strict=True):
            parts = shard.split([kinds[i][0] for i in members])
            for i, part in zip(members, parts, strict=True):
                results[i] = part.to(kinds[i][1])
        return [results[i] for i in range(len(flats))]

    def all_gather(self, shards: Sequence[Tensor], names: Sequence[str] = ()) -> list[Tensor]:
        """All-gathered flat tensors, of which each shard is this rank's `1 / size`."""
        size, results = self.levels.all.size, dict[int, Tensor]()
        plan = list(self.split_into_buckets(shards, names, self.bucket_bytes // size, size))

        def start(bucket: str, members: list[int]) -> ExchangeSteps:
            shard = joined([shards[i] for i in members])
            columns = _members(names, members, [shards[i].numel() for i in members])
            return self.exchange("weights", bucket, shard.numel(), columns).all_gather_steps(shard)

        works = (start(bucket, members) for bucket, members in plan)
        for (_, members), rows in zip(plan, run_exchanges(works, _device(shards)), strict=True):
            parts = rows.split([shards[i].numel() for i in members], dim=1)
            for i, part in zip(members, parts, strict=True):
                results[i] = part.reshape(-1).to(shards[i].dtype)
        return [results[i] for i in range(len(shards))]

    def start_reduce_scatter(self, flats: list[Tensor], names: Sequence[str] = ()) -> Arrival:
        """`reduce_scatter`, at once: its kernels take the processor that would work beside it."""
        arrived = self.reduce_scatter(flats, names)
        return lambda: arrived

    def start_all_gather(self, shards: Sequence[Tensor], names: Sequence[str] = ()) -> Arrival:
        """`all_gather`, at once."""
        arrived = self.all_gather(shards, names)
        return lambda: arrived

    def split_into_buckets(
        self,
        tensors: Sequence[Tensor],
        names: Sequence[str],
        limit_bytes: int,
        shard_count: int = 1,
    ) -> Iterator[tuple[str, list[int]]]:
        """Buckets by name: of small tensors, which are not compressed, and of the others.

        `shards`: how many such make a tensor.
        """
        sizes = [t.numel() * t.element_size() * shard_count for t in tensors]
        for kind, small in (("large", False), ("small", True)):
            selected = [i for i, s in enumerate(sizes) if (s < self.small_bytes) == small]
            groups = buckets([tensors[i] for i in selected], limit_bytes)
            for number, group in enumerate(groups):
                members = [selected[i] for i in group]
                yield f"{kind}.{_label([names[i] for i in members]) if names else number}", members

    def exchange(
        self, payload: Payload, bucket: str, elements: int, members: Members = ()
    ) -> CompressedCollective:
        """The collective of a bucket, created with the states that were loaded for it."""
        name = f"{payload}.{bucket}"
        if name not in self.exchanges:
            exchange = CompressedCollective(
                self.program(payload),
                self.levels,
                elements,
                BucketOptions(
                    total=self.total,
                    warmup=self.warmup(payload),
                    small_bytes=0 if bucket.startswith("large") else 4 * elements + 1,
                    seed=crc32(name.encode()),
                ),
                self.codec,
            )
            self.members[name] = members
            self._resume(exchange, name, payload, members)
            if name in self.saved:
                exchange.load_state_dict(self.saved.pop(name))
            self.exchanges[name] = exchange
        exchange = self.exchanges[name]
        if exchange.elements != elements:
            raise MismatchError(
                f"bucket {name} has {elements} elements, {exchange.elements} in earlier steps"
            )
        return exchange

    def states(self, payload: Payload) -> tuple[CompressionState, ...]:
        """States that a large bucket keeps from step to step."""
        program = self.algorithm.program(payload)
        sizes = self.levels.inner.size, self.levels.outer.size
        return lower(program, *sizes, self.total).states if program else ()

    def program(self, payload: Payload) -> CompressionProgram:
        """The algorithm's program for a payload. Raises UsageError when it has none."""
        program = self.algorithm.program(payload)
        if program is None:
            raise UsageError(f"{self.algorithm.name} has no program for {payload}")
        return program

    def warmup(self, payload: Payload) -> int:
        """Steps in fp32; one where there are replicas, so that all start from the same values."""
        return max(self.algorithm.schedule.warmup, int(self.replicates(payload)))

    def replicates(self, payload: Payload) -> bool:
        """Whether ranks keep the weights they have received."""
        return any(state.name == REPLICA for state in self.states(payload))

    def tensor_states(self) -> Iterator[TensorState]:
        """All states by tensor; all ranks groups."""
        for name, exchange in self.exchanges.items():
            payload = exchange.program.payload
            for state in exchange.pipeline.states:
                parts = exchange.full_state(state).split(
                    [size for _, size in self.members[name]], -1
                )
                for (tensor, _), part in zip(self.members[name], parts, strict=True):
                    by_rank = state.on_reshard == "reset"
                    yield TensorState(payload, state.name, tensor, by_rank, part.reshape(-1))
        yield from self.pending.values()

    def load_tensor_states(
        self, states: Iterable[TensorState], counts: Mapping[str, int], first_count: int
    ) -> None:
        """Load states from `tensor_states` into buckets that are created later.

        `counts` are exchanges so far by bucket, `first_count` those of other buckets.
        """
        self.pending = {(one.payload, one.state, one.tensor): one for one in states}
        self.counts, self.first_count = counts, first_count

    def exchange_counts(self) -> dict[str, int]:
        """Number of exchanges of each bucket so far."""
        return {**self.counts, **{name: e.step for name, e in self.exchanges.items()}}

    def _resume(
        self, exchange: CompressedCollective, name: str, payload: Payload, members: Members
    ) -> None:
        """Give a new collective the pending states of its tensors and their number of exchanges."""
        exchange.step = self.counts.get(name, self.first_count)
        for state in exchange.pipeline.states:
            parts = [self.pending.pop((payload, state.name, t), None) for t, _ in members]
            if any(parts):
                rows = 1 if exchange.program.collective == "all_reduce" else self.levels.all.size
                exchange.set_full_state(state, _joined(parts, members, rows))
            if state.name == REPLICA and not all(parts):
                exchange.warmup = max(exchange.warmup, exchange.step + 1)

    def _with_residuals(self, flat: Tensor, members: Members) -> Tensor:
        """Gradients plus loaded residuals that have no state here: they are added once."""
        parts = [self.pending.pop(("gradients", RESIDUAL, tensor), None) for tensor, _ in members]
        return flat + _joined(parts, members, 1).view(-1) if any(parts) else flat

    def state_dict(self) -> dict[str, Any]:
        """Named states of all buckets of this rank."""
        return {name: exchange.state_dict() for name, exchange in self.exchanges.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """States for buckets that are there or still to come. Raises MismatchError for other sizes."""
        self.saved = dict(saved)
        for name, exchange in self.exchanges.items():
            if name in self.saved:
                exchange.load_state_dict(self.saved.pop(name))


def _members(names: Sequence[str], members: list[int], sizes: list[int]) -> Members:
    return tuple((names[i] if names else f"{i}", n) for i, n in zip(members, sizes, strict=True))


def _label(names: Sequence[str]) -> str:
    return f"{crc32(chr(0).join(names).encode()):08x}"


def _device(tensors: Sequence[Tensor]) -> torch.device:
    return tensors[0].device if tensors else torch.device("cpu")


def _joined(parts: Sequence[TensorState | None], members: Members, rows: int) -> Tensor:
    """The tensors' states as one `[rows, elements]` bucket; zeros for tensors without one."""
    columns = [
        torch.zeros(rows, size) if part is None else part.value.view(rows, size)
        for part, (_, size) in zip(parts, members, strict=True)
    ]
    return torch.cat(columns, 1)
