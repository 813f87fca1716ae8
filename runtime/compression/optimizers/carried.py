"""What an optimizer that talks itself keeps, by parameter: for checkpoints, and for other plans.

    as long as the weights   every parameter has its part; where ranks differ, one for each (`error@2`)
    a rank's share of that   put together first
    one per parameter        a number
    anything else            every parameter has all of it

On as many ranks each has its own again, to the bit. On others all have the mean: what ranks owe
together, and the weights that they would agree on, stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .based import Based
from .flat import FlatOptimizer, Part

State = dict[str, Tensor]
WEIGHTS, BASE = "local_weights", "base."


class _Value(NamedTuple):
    """Something a part keeps: `[vectors, elements]` if it is `long`, and how to set it again."""

    name: str
    now: Tensor
    long: bool
    put: Callable[[Tensor], object]


def carried(optimizer: FlatOptimizer) -> dict[Tensor, State]:
    """What is kept for every parameter; all ranks together."""
    found: dict[Tensor, State] = {p: {} for part in optimizer.parts for p in part.parameters}
    for number, part in enumerate(optimizer.parts):
        for value in _values(optimizer, number, part):
            for name, whole in _named(optimizer, value):
                pieces = _pieces(part, whole, value.long)
                for parameter, piece in zip(part.parameters, pieces, strict=True):
                    found[parameter][name] = piece
    return found


def carry(optimizer: FlatOptimizer, found: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
    """Go on with what `carried` gave on this or another number of ranks; what is missing stays."""
    for number, part in enumerate(optimizer.parts):
        if isinstance(optimizer, Based):
            _begin(optimizer, number, part, found)
        for value in _values(optimizer, number, part):
            known = [found.get(parameter, {}) for parameter in part.parameters]
            before = _pieces(part, value.now, value.long)
            rank, size = optimizer.levels.all.index, optimizer.levels.all.size
            kept = [
                _found(value.name, own, rank, size, piece)
                for own, piece in zip(known, before, strict=True)
            ]
            value.put(_joined(part, kept, value))


def _values(optimizer: FlatOptimizer, number: int, part: Part) -> Iterator[_Value]:
    """All that one part keeps."""
    here = torch.cat([p.detach().reshape(-1) for p in part.parameters])
    yield _Value(WEIGHTS, here[None], True, lambda x: _put(part, x))
    yield _count("step", part)
    for name, value in part.values.items():
        yield _value(optimizer, part, name, value)
    for name, exchange in part.exchanges.items():
        yield _count(f"{name}.step", exchange)
        for state in exchange.pipeline.states:
            flat = exchange.whole(state).reshape(-1)
            vectors = max(1, flat.numel() // part.elements)
            rows = flat[: vectors * part.elements].view(vectors, -1)

            def put(x: Tensor, exchange=exchange, state=state, flat=flat) -> None:  # type: ignore[no-untyped-def]
                new = flat.clone()
                new[: x.numel()] = x.reshape(-1)
                exchange.fill(state, new)

            yield _Value(f"{name}.{state.name}", rows, True, put)
    if isinstance(optimizer, Based):
        weights = part.values["weights"]
        for name, value in optimizer.bases[number].state.get(weights, {}).items():
            yield _value(optimizer, part, f"{BASE}{name}", value)


def _begin(
    optimizer: Based, number: int, part: Part, found: Mapping[Tensor, Mapping[str, Tensor]]
) -> None:
    """States that the optimizer of a part has once it has stepped."""
    first = part.parameters[0]
    weights, state = part.values["weights"], optimizer.bases[number].state
    for name, value in found.get(first, {}).items():
        if name.startswith(BASE):
            key = name.removeprefix(BASE).partition("@")[0]
            long = torch.as_tensor(value).shape == first.shape
            made = torch.zeros_like(weights) if long else torch.zeros_like(torch.as_tensor(value))
            state[weights].setdefault(key, made)


def _value(optimizer: FlatOptimizer, part: Part, name: str, value: Tensor) -> _Value:
    if value.numel() == part.elements and value.dim():
        return _Value(name, value.view(1, -1), True, lambda x: value.copy_(x.view_as(value)))
    size, index = optimizer.levels.all.size, optimizer.levels.all.index
    if value.dim() and value.numel() == -(-part.elements // size):
        rows = optimizer.levels.all.all_gather(value).reshape(-1)
        long = rows[: part.elements].view(1, -1)

        def put(x: Tensor) -> None:
            padded = rows.clone()
            padded[: part.elements] = x.view(-1)
            value.copy_(padded.view(size, -1)[index])

        return _Value(name, long, True, put)
    return _Value(name, value, False, value.copy_)


def _count(name: str, owner: object) -> _Value:
    now = torch.tensor(float(owner.step))  # type: ignore[attr-defined]
    return _Value(name, now, False, lambda x: setattr(owner, "step", int(x)))


def _put(part: Part, x: Tensor) -> None:
    for parameter, piece in zip(part.parameters, part.split(x.view(-1)), strict=True):
        parameter.data.copy_(piece.view_as(parameter))


def _named(optimizer: FlatOptimizer, value: _Value) -> Iterator[tuple[str, Tensor]]:
    """One for all ranks, or one of each where they differ."""
    if not value.long:
        yield value.name, value.now
        return
    rows = optimizer.levels.all.all_gather(value.now.contiguous())
    rows = rows.view(optimizer.levels.all.size, *value.now.shape)
    if all(torch.equal(rows[0], row) for row in rows[1:]):
        if value.name != WEIGHTS:  # those are the model's
            yield value.name, rows[0]
        return
    for rank, row in enumerate(rows):
        yield f"{value.name}@{rank}", row


def _pieces(part: Part, whole: Tensor, long: bool) -> list[Tensor]:
    """What every parameter has of it."""
    if long:
        columns = zip(*(part.split(row) for row in whole), strict=True)
        shapes = [p.shape for p in part.parameters]
        return [
            torch.stack([c.view(shape) for c in column])
            if len(column) > 1
            else column[0].view(shape)
            for column, shape in zip(columns, shapes, strict=True)
        ]
    if whole.dim() == 1 and whole.numel() == len(part.sizes):
        return list(whole)
    return [whole] * len(part.sizes)


def _joined(part: Part, pieces: list[Tensor], value: _Value) -> Tensor:
    """The inverse of `_pieces`."""
    if value.long:
        rows = [piece.reshape(len(value.now), -1) for piece in pieces]
        return torch.cat(rows, 1)
    if value.now.dim() == 1 and value.now.numel() == len(part.sizes):
        return torch.stack(pieces)
    return pieces[0]


def _found(name: str, own: Mapping[str, Tensor], rank: int, size: int, otherwise: Tensor) -> Tensor:
    """What was saved of a parameter under a name."""
    if name in own:
        return torch.as_tensor(own[name], dtype=otherwise.dtype).view_as(otherwise)
    ranks = sorted(int(key.rpartition("@")[2]) for key in own if key.rpartition("@")[0] == name)
    if not ranks:
        return otherwise
    if ranks == list(range(size)):
        return own[f"{name}@{rank}"].view_as(otherwise)
    return torch.stack([own[f"{name}@{r}"] for r in ranks]).mean(0).view_as(otherwise)
