"""Compressed collectives over many tensors at once: what `runtime.buckets` does, with an algorithm.

    compressed = Buckets(algorithm("sdp4bit"), levels, codec)
    pieces = compressed.reduce_scatter(flats)     # every step the same tensors in the same order
    flats = compressed.all_gather(pieces)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ir.compression.program import Algorithm, Program, Subject
from ...ir.errors import MismatchError, UsageError
from ..buckets import BUCKET_BYTES, buckets
from .codec import Codec
from .exchange import SMALL_BYTES, Exchange
from .work import Levels


class Buckets:
    """Exchanges of the buckets of a program, made as they are first needed.

    Gradients add up (`total`) as in generated programs. Weights are gathered in fp32 once, which
    starts the replicas. What the algorithm has no program for is refused.
    """

    def __init__(
        self, algorithm: Algorithm, levels: Levels, codec: Codec | None = None,
        total: bool = True, small_bytes: int = SMALL_BYTES, bucket_bytes: int = BUCKET_BYTES,
    ) -> None:  # fmt: skip
        self.algorithm, self.levels, self.codec = algorithm, levels, codec
        self.total, self.small_bytes, self.bucket_bytes = total, small_bytes, bucket_bytes
        self.exchanges: dict[str, Exchange] = {}
        self.saved: dict[str, Any] = {}

    def all_reduce(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The reduced tensors, each in its own shape and type."""
        done: dict[int, Tensor] = {}
        for number, members in enumerate(buckets(tensors, self.bucket_bytes)):
            flat = torch.cat([tensors[i].reshape(-1) for i in members])
            whole = self.exchange("gradients", number, flat.numel()).all_reduce(flat, in_place=True)
            parts = whole.split([tensors[i].numel() for i in members])
            for i, part in zip(members, parts, strict=True):
                done[i] = part.view(tensors[i].shape).to(tensors[i].dtype)
        return [done[i] for i in range(len(tensors))]

    def reduce_scatter(self, flats: Sequence[Tensor]) -> list[Tensor]:
        """This rank's `1 / size` of every reduced flat tensor."""
        size, done = self.levels.all.size, dict[int, Tensor]()
        for number, members in enumerate(buckets(flats, self.bucket_bytes)):
            rows = torch.cat([flats[i].view(size, -1) for i in members], dim=1)
            exchange = self.exchange("gradients", number, rows.numel())
            parts = exchange.reduce_scatter(rows).split([flats[i].numel() // size for i in members])
            for i, part in zip(members, parts, strict=True):
                done[i] = part.to(flats[i].dtype)
        return [done[i] for i in range(len(flats))]

    def all_gather(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """The whole of which each flat tensor is this rank's `1 / size`."""
        limit, done = self.bucket_bytes // self.levels.all.size, dict[int, Tensor]()
        for number, members in enumerate(buckets(pieces, limit)):
            piece = torch.cat([pieces[i] for i in members])
            rows = self.exchange("weights", number, piece.numel()).all_gather(piece)
            parts = rows.split([pieces[i].numel() for i in members], dim=1)
            for i, part in zip(members, parts, strict=True):
                done[i] = part.reshape(-1).to(pieces[i].dtype)
        return [done[i] for i in range(len(pieces))]

    def exchange(self, subject: Subject, number: int, elements: int) -> Exchange:
        """That of a bucket, with the states that were loaded for it."""
        name = f"{subject}.{number}"
        if name not in self.exchanges:
            made = Exchange(
                self.program(subject), self.levels, elements, codec=self.codec,
                total=self.total, warmup=self.warmup(subject), small_bytes=self.small_bytes,
                seed=2 * number + (subject == "weights"),
            )  # fmt: skip
            if name in self.saved:
                made.load_state_dict(self.saved.pop(name))
            self.exchanges[name] = made
        found = self.exchanges[name]
        if found.elements != elements:
            raise MismatchError(
                f"bucket {name} has {elements} elements, {found.elements} in earlier steps"
            )
        return found

    def program(self, subject: Subject) -> Program:
        """Raises UsageError when the algorithm has none."""
        found = self.algorithm.program(subject)
        if found is None:
            raise UsageError(f"{self.algorithm.name} has no program for {subject}")
        return found

    def warmup(self, subject: Subject) -> int:
        """Steps in fp32; one for weights, so that all replicas start alike."""
        return max(self.algorithm.schedule.warmup, int(subject == "weights"))

    def state_dict(self) -> dict[str, Any]:
        """Named states of all buckets of this rank."""
        return {name: exchange.state_dict() for name, exchange in self.exchanges.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """States for buckets that are there or still to come. Raises MismatchError for other sizes."""
        self.saved = dict(saved)
        for name, exchange in self.exchanges.items():
            if name in self.saved:
                exchange.load_state_dict(self.saved.pop(name))
