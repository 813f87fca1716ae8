"""Moves tensors from the shards of one program to those of another, each missing element once.

rank 0 has  ████████░░░░░░░░  and needs  ████░░░░████░░░░   what it has it copies,
rank 1 has  ░░░░░░░░████████  and needs  ░░░░████░░░░████   the rest is one message a pair
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from ....ir.lowering.redistribute import Movement, ShardLevels, movements
from ....ir.plan.program import ProgramTable
from ...comm.process_group import Group
from ..local_tensor import Box, LocalTensor

MESSAGE_BYTES = 256 << 20  # of whole tensors that travel in one exchange
LocalTensors = Mapping[str, LocalTensor]


class Redistribution:
    """What every rank sends and receives so that tensors lie where they are needed, of `dtypes` there;
    `moves` are the same on all ranks, `sizes` bytes of the tensors."""

    def __init__(
        self, moves: Sequence[Movement], dtypes: Mapping[str, torch.dtype], sizes: Mapping[str, int]
    ) -> None:
        self.dtypes = dtypes
        self.exchanges = list(_exchanges(moves, sizes))

    @classmethod
    def between(
        cls,
        old: ProgramTable,
        new: ProgramTable,
        dtypes: Mapping[str, torch.dtype],
        levels: ShardLevels,
    ) -> Redistribution:
        """From the shards of one program to those of another, on the same ranks."""
        sizes = {name: spec.type.bytes for spec in new.state_tensors for name in spec.names()}
        return cls(movements(old, new, dtypes, levels), dtypes, sizes)

    def run(self, group: Group, source: LocalTensors, target: LocalTensors) -> None:
        """Fill this rank's memory of `target` from what the ranks have in `source`; all ranks of the
        group together."""
        for moves in self.exchanges:
            self._exchange(group, moves, source, target)

    def _exchange(
        self, group: Group, moves: Sequence[Movement], source: LocalTensors, target: LocalTensors
    ) -> None:
        sent: list[list[Tensor]] = [[] for _ in range(group.size)]
        awaited: list[list[Movement]] = [[] for _ in range(group.size)]
        for move in moves:
            if group.index == move.sender:
                boxes = [_read(source[move.name], box) for box in _simple_boxes(move)]
                values = [values.to(self.dtypes[move.name]) for values in boxes]
                if move.sender == move.receiver:
                    _write_all(target[move.name], move, values)
                else:
                    sent[move.receiver] += [_as_bytes(one) for one in values]
            elif group.index == move.receiver:
                awaited[move.sender].append(move)
        message = torch.cat(
            [one for values in sent for one in values] or [_nothing(source, target)]
        )
        to_ranks = [sum(map(len, values)) for values in sent]
        from_ranks = [sum(map(self._bytes, row)) for row in awaited]
        received, at = group.exchange_rows(message, to_ranks, from_ranks), 0
        for move in (move for row in awaited for move in row):
            values = list[Tensor]()
            for _, sizes in _simple_boxes(move):
                count = prod(sizes) * self.dtypes[move.name].itemsize
                flat = received[at : at + count].clone()  # aligned for its type
                values.append(flat.view(self.dtypes[move.name]).view(sizes))
                at += count
            _write_all(target[move.name], move, values)

    def _bytes(self, move: Movement) -> int:
        elements = sum(prod(sizes) for _, sizes in _simple_boxes(move))
        return elements * self.dtypes[move.name].itemsize


def _exchanges(moves: Sequence[Movement], sizes: Mapping[str, int]) -> Iterator[list[Movement]]:
    """The movements of as many tensors at a time as `MESSAGE_BYTES` allow, at least of one."""
    together: list[Movement] = []
    total, name = 0, ""
    for move in moves:
        if move.name != name:
            total, name = total + sizes[move.name], move.name
            if together and total > MESSAGE_BYTES:
                yield together
                together, total = [], sizes[move.name]
        together.append(move)
    if together:
        yield together


def _simple_boxes(move: Movement) -> list[Box]:
    """Offsets and sizes of the boxes without gaps that a movement is."""
    return [
        (tuple(first for first, _ in corner), tuple(last - first for first, last in corner))
        for corner in product(*move.box)
    ]


def _read(tensor: LocalTensor, box: Box) -> Tensor:
    """The values of a box, which this rank has in one chunk or several."""
    values: Tensor | None = None
    for chunk, inside in _overlaps(tensor, box):
        if chunk.shape == torch.Size(box[1]):
            return chunk
        values = chunk.new_empty(box[1]) if values is None else values
        values[inside] = chunk
    assert values is not None, f"no part of {box} is on this rank"
    return values


def _write_all(tensor: LocalTensor, move: Movement, values: Sequence[Tensor]) -> None:
    for box, new in zip(_simple_boxes(move), values, strict=True):
        for chunk, inside in _overlaps(tensor, box):
            chunk.copy_(new[inside])


def _overlaps(tensor: LocalTensor, box: Box) -> Iterator[tuple[Tensor, tuple[slice, ...]]]:
    """The parts of a rank's chunks that lie in a box (views), and where they lie in it."""
    offsets, sizes = box
    for chunk in tensor.chunks:
        firsts = [max(a, b) for a, b in zip(chunk.offsets, offsets, strict=True)]
        lasts = [
            min(a + n, b + m)
            for a, n, b, m in zip(chunk.offsets, chunk.values.shape, offsets, sizes, strict=True)
        ]
        if all(first < last for first, last in zip(firsts, lasts, strict=True)):
            yield (
                chunk.values[_slices(firsts, lasts, chunk.offsets)],
                _slices(firsts, lasts, offsets),
            )


def _slices(
    firsts: Sequence[int], lasts: Sequence[int], origin: Sequence[int]
) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(firsts, lasts, origin, strict=True))


def _as_bytes(values: Tensor) -> Tensor:
    return values.contiguous().reshape(-1).view(torch.uint8)


def _nothing(*tensors: LocalTensors) -> Tensor:
    """An empty message, on the device of the tensors."""
    device = next((c.values.device for t in tensors for n in t.values() for c in n.chunks), None)
    return torch.empty(0, dtype=torch.uint8, device=device)
