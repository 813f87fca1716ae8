"""Compressed collectives over many tensors at once: what `runtime.buckets` does, with an algorithm.

    compressed = Buckets(algorithm("sdp4bit"), levels, codec)
    pieces = compressed.reduce_scatter(flats)     # every step the same tensors in the same order
    flats = compressed.all_gather(pieces)

With names, several lists may travel in a step, such as those of every layer: a bucket is known by the
tensors in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from ...ir.compression.kernel import State
from ...ir.compression.lower import lower
from ...ir.compression.program import Algorithm, Program, Subject
from ...ir.errors import MismatchError, UsageError
from ...ir.program import BUCKET_BYTES
from ..comm.buckets import buckets, joined, taken
from .backends.codec import Codec
from .drive import driven
from .exchange import SMALL_BYTES, Exchange
from .work import Levels, Work

OWED = "owed"  # the state of errors that are only to be added once
REPLICA = "replica"  # the state that all ranks have of weights


class Carried(NamedTuple):
    """What one tensor's part of a state is worth to later steps, flat and without a bucket's padding.

    `by_rank`: every rank has a value of its own; otherwise all have the same.
    """

    subject: Subject
    state: str
    tensor: str
    by_rank: bool
    value: Tensor


Members = tuple[tuple[str, int], ...]  # tensors of a bucket and their columns in it


class Buckets:
    """Exchanges of the buckets of a program, made as they are first needed.

    Gradients add up (`total`) as in generated programs; their lists are taken over. Tensors smaller
    than `small_bytes` travel in fp32. Weights are gathered in fp32 once where that starts replicas.
    What the algorithm has no program for is refused.
    With the `names` of the tensors their states can be `carried` over to other buckets and ranks.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        levels: Levels,
        codec: Codec | None = None,
        total: bool = True,
        small_bytes: int = SMALL_BYTES,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.algorithm, self.levels, self.codec = algorithm, levels, codec
        self.total, self.small_bytes, self.bucket_bytes = total, small_bytes, bucket_bytes
        self.exchanges: dict[str, Exchange] = {}
        self.saved: dict[str, Any] = {}
        self.members: dict[str, Members] = {}
        self.waiting: dict[tuple[Subject, str, str], Carried] = {}
        self.done: Mapping[str, int] = {}
        self.begun = 0

    def all_reduce(self, tensors: list[Tensor], names: Sequence[str] = ()) -> list[Tensor]:
        """The reduced tensors, each in its own shape and type."""
        done, planned = dict[int, Tensor](), list(self.plan(tensors, names, self.bucket_bytes))
        device, kinds = _device(tensors), [(t.shape, t.dtype) for t in tensors]

        def work(bucket: str, members: list[int]) -> Work:
            own = _members(names, members, [tensors[i].numel() for i in members])
            flat = taken(tensors, members).view(-1)
            exchange = self.exchange("gradients", bucket, flat.numel(), own)
            paid = self._paid(flat, own)
            return exchange.reducing(paid, in_place=paid is not flat or len(members) > 1)

        works = (work(bucket, members) for bucket, members in planned)
        for (_, members), total in zip(planned, driven(works, device), strict=True):
            parts = total.split([kinds[i][0].numel() for i in members])
            for i, part in zip(members, parts, strict=True):
                shape, dtype = kinds[i]
                done[i] = part.view(shape).to(dtype)
        return [done[i] for i in range(len(tensors))]

    def reduce_scatter(self, flats: list[Tensor], names: Sequence[str] = ()) -> list[Tensor]:
        """This rank's `1 / size` of every reduced flat tensor."""
        size, done = self.levels.all.size, dict[int, Tensor]()
        planned = list(self.plan(flats, names, self.bucket_bytes))
        device, kinds = _device(flats), [(f.numel() // size, f.dtype) for f in flats]
        flats[:] = [flat.view(size, -1) for flat in flats]

        def work(bucket: str, members: list[int]) -> Work:
            own = _members(names, members, [kinds[i][0] for i in members])
            rows = taken(flats, members, 1)
            return self.exchange("gradients", bucket, rows.numel(), own).scattering(rows)

        works = (work(bucket, members) for bucket, members in planned)
        for (_, members), piece in zip(planned, driven(works, device), strict=True):
            parts = piece.split([kinds[i][0] for i in members])
            for i, part in zip(members, parts, strict=True):
                done[i] = part.to(kinds[i][1])
        return [done[i] for i in range(len(flats))]

    def all_gather(self, pieces: Sequence[Tensor], names: Sequence[str] = ()) -> list[Tensor]:
        """The whole of which each flat tensor is this rank's `1 / size`."""
        size, done = self.levels.all.size, dict[int, Tensor]()
        planned = list(self.plan(pieces, names, self.bucket_bytes // size, size))

        def work(bucket: str, members: list[int]) -> Work:
            piece = joined([pieces[i] for i in members])
            own = _members(names, members, [pieces[i].numel() for i in members])
            return self.exchange("weights", bucket, piece.numel(), own).gathering(piece)

        works = (work(bucket, members) for bucket, members in planned)
        for (_, members), rows in zip(planned, driven(works, _device(pieces)), strict=True):
            parts = rows.split([pieces[i].numel() for i in members], dim=1)
            for i, part in zip(members, parts, strict=True):
                done[i] = part.reshape(-1).to(pieces[i].dtype)
        return [done[i] for i in range(len(pieces))]

    def plan(
        self, tensors: Sequence[Tensor], names: Sequence[str], limit_bytes: int, pieces: int = 1
    ) -> Iterator[tuple[str, list[int]]]:
        """Buckets by name: of small tensors, which are not compressed, and of the others.

        `pieces`: how many such make a tensor.
        """
        sizes = [t.numel() * t.element_size() * pieces for t in tensors]
        for kind, small in (("large", False), ("small", True)):
            chosen = [i for i, s in enumerate(sizes) if (s < self.small_bytes) == small]
            together = buckets([tensors[i] for i in chosen], limit_bytes)
            for number, found in enumerate(together):
                members = [chosen[i] for i in found]
                yield f"{kind}.{_label([names[i] for i in members]) if names else number}", members

    def exchange(
        self, subject: Subject, bucket: str, elements: int, members: Members = ()
    ) -> Exchange:
        """That of a bucket, with the states that were loaded for it."""
        name = f"{subject}.{bucket}"
        if name not in self.exchanges:
            made = Exchange(
                self.program(subject),
                self.levels,
                elements,
                codec=self.codec,
                total=self.total,
                warmup=self.warmup(subject),
                seed=crc32(name.encode()),
                small_bytes=0 if bucket.startswith("large") else 4 * elements + 1,
            )
            self.members[name] = members
            self._go_on(made, name, subject, members)
            if name in self.saved:
                made.load_state_dict(self.saved.pop(name))
            self.exchanges[name] = made
        found = self.exchanges[name]
        if found.elements != elements:
            raise MismatchError(
                f"bucket {name} has {elements} elements, {found.elements} in earlier steps"
            )
        return found

    def states(self, subject: Subject) -> tuple[State, ...]:
        """What a large bucket carries from step to step."""
        found = self.algorithm.program(subject)
        sizes = self.levels.inner.size, self.levels.outer.size
        return lower(found, *sizes, self.total).states if found else ()

    def program(self, subject: Subject) -> Program:
        """Raises UsageError when the algorithm has none."""
        found = self.algorithm.program(subject)
        if found is None:
            raise UsageError(f"{self.algorithm.name} has no program for {subject}")
        return found

    def warmup(self, subject: Subject) -> int:
        """Steps in fp32; one where there are replicas, so that all start alike."""
        return max(self.algorithm.schedule.warmup, int(self.replicates(subject)))

    def replicates(self, subject: Subject) -> bool:
        """Whether ranks keep what they have been sent."""
        return any(state.name == REPLICA for state in self.states(subject))

    def carried(self) -> Iterator[Carried]:
        """All states by tensor; all ranks together."""
        for name, exchange in self.exchanges.items():
            subject = exchange.program.subject
            for state in exchange.pipeline.states:
                parts = exchange.whole(state).split([size for _, size in self.members[name]], -1)
                for (tensor, _), part in zip(self.members[name], parts, strict=True):
                    by_rank = state.resharded == "reset"
                    yield Carried(subject, state.name, tensor, by_rank, part.reshape(-1))
        yield from self.waiting.values()

    def carry(self, found: Iterable[Carried], done: Mapping[str, int], begun: int) -> None:
        """Go on with states of `carried` in buckets that are still to come: they have travelled as often
        as `done` says, others `begun` times."""
        self.waiting = {(one.subject, one.state, one.tensor): one for one in found}
        self.done, self.begun = done, begun

    def steps(self) -> dict[str, int]:
        """How often each bucket has travelled."""
        return {**self.done, **{name: e.step for name, e in self.exchanges.items()}}

    def _go_on(self, exchange: Exchange, name: str, subject: Subject, members: Members) -> None:
        """A new exchange starts where the states that wait for its tensors come from."""
        exchange.step = self.done.get(name, self.begun)
        for state in exchange.pipeline.states:
            parts = [self.waiting.pop((subject, state.name, t), None) for t, _ in members]
            if any(parts):
                rows = 1 if exchange.program.result == "all_reduce" else self.levels.all.size
                exchange.fill(state, _joined(parts, members, rows))
            if state.name == REPLICA and not all(parts):
                exchange.warmup = max(exchange.warmup, exchange.step + 1)

    def _paid(self, flat: Tensor, members: Members) -> Tensor:
        """With errors that have no state here to go on in: they are added once."""
        parts = [self.waiting.pop(("gradients", OWED, tensor), None) for tensor, _ in members]
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


def _joined(parts: Sequence[Carried | None], members: Members, rows: int) -> Tensor:
    """A bucket of the tensors' parts; of those that have none, zeros."""
    columns = [
        torch.zeros(rows, size) if part is None else part.value.view(rows, size)
        for part, (_, size) in zip(parts, members, strict=True)
    ]
    return torch.cat(columns, 1)
