"""States of compressed optimizers by parameter: for checkpoints, and for other plans.

    flat, as long as the weights   a slice per parameter; where ranks differ, one per rank (`error@2`)
    a rank's shard of those        gathered first
    one value per parameter        a number
    anything else                  the same value for every parameter

On as many ranks each rank gets its own again, to the bit. On others all get the mean: the sum of the
errors, and the mean of the weights, stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .flat import FlatBucket, FlatOptimizer
from .wrapped import WrappedOptimizer

State = dict[str, Tensor]
WEIGHTS, BASE = "local_weights", "base."


class _BucketState(NamedTuple):
    """A state of a bucket: `[vectors, elements]` if it is `elementwise`; `assign` sets it."""

    name: str
    value: Tensor
    elementwise: bool
    assign: Callable[[Tensor], object]


def parameter_states(optimizer: FlatOptimizer) -> dict[Tensor, State]:
    """States of every parameter, by name; all ranks together."""
    states: dict[Tensor, State] = {p: {} for bucket in optimizer.buckets for p in bucket.parameters}
    for number, bucket in enumerate(optimizer.buckets):
        for value in _bucket_states(optimizer, number, bucket):
            for name, full in _by_rank(optimizer, value):
                parts = _split_by_parameter(bucket, full, value.elementwise)
                for parameter, part in zip(bucket.parameters, parts, strict=True):
                    states[parameter][name] = part
    return states


def load_parameter_states(
    optimizer: FlatOptimizer, states: Mapping[Tensor, Mapping[str, Tensor]]
) -> None:
    """Load the result of `parameter_states` on this or another number of ranks; missing states stay."""
    for number, bucket in enumerate(optimizer.buckets):
        if isinstance(optimizer, WrappedOptimizer):
            _create_base_states(optimizer, number, bucket, states)
        for value in _bucket_states(optimizer, number, bucket):
            saved_states = [states.get(parameter, {}) for parameter in bucket.parameters]
            before = _split_by_parameter(bucket, value.value, value.elementwise)
            rank, size = optimizer.levels.all.index, optimizer.levels.all.size
            values = [
                _saved_value(value.name, saved, rank, size, current)
                for saved, current in zip(saved_states, before, strict=True)
            ]
            value.assign(_join_parameters(bucket, values, value))
    optimizer.states_loaded()


def _bucket_states(
    optimizer: FlatOptimizer, number: int, bucket: FlatBucket
) -> Iterator[_BucketState]:
    """All states of one bucket: weights, step, values, those of its collectives and base optimizer."""
    here = torch.cat([p.detach().reshape(-1) for p in bucket.parameters])
    yield _BucketState(WEIGHTS, here[None], True, lambda x: _assign_weights(bucket, x))
    yield _step_state("step", bucket)
    for name, value in bucket.values.items():
        yield _bucket_state(optimizer, bucket, name, value)
    for name, exchange in bucket.exchanges.items():
        yield _step_state(f"{name}.step", exchange)
        for state in exchange.pipeline.states:
            flat = exchange.full_state(state).reshape(-1)
            vectors = max(1, flat.numel() // bucket.elements)
            rows = flat[: vectors * bucket.elements].view(vectors, -1)

            def put(x: Tensor, exchange=exchange, state=state, flat=flat) -> None:  # type: ignore[no-untyped-def]
                new = flat.clone()
                new[: x.numel()] = x.reshape(-1)
                exchange.set_full_state(state, new)

            yield _BucketState(f"{name}.{state.name}", rows, True, put)
    if isinstance(optimizer, WrappedOptimizer):
        weights = bucket.values["weights"]
        for name, value in optimizer.bases[number].state.get(weights, {}).items():
            yield _bucket_state(optimizer, bucket, f"{BASE}{name}", value)


def _create_base_states(
    optimizer: WrappedOptimizer,
    number: int,
    bucket: FlatBucket,
    states: Mapping[Tensor, Mapping[str, Tensor]],
) -> None:
    """Create the states that the base optimizer of a bucket has after its first step."""
    first = bucket.parameters[0]
    weights, state = bucket.values["weights"], optimizer.bases[number].state
    for name, value in states.get(first, {}).items():
        if name.startswith(BASE):
            key = name.removeprefix(BASE).partition("@")[0]
            long = torch.as_tensor(value).shape == first.shape
            initial = (
                torch.zeros_like(weights) if long else torch.zeros_like(torch.as_tensor(value))
            )
            state[weights].setdefault(key, initial)


def _bucket_state(
    optimizer: FlatOptimizer, bucket: FlatBucket, name: str, value: Tensor
) -> _BucketState:
    if value.numel() == bucket.elements and value.dim():
        return _BucketState(name, value.view(1, -1), True, lambda x: value.copy_(x.view_as(value)))
    size, index = optimizer.levels.all.size, optimizer.levels.all.index
    if value.dim() and value.numel() == -(-bucket.elements // size):
        rows = optimizer.levels.all.all_gather(value).reshape(-1)
        long = rows[: bucket.elements].view(1, -1)

        def put(x: Tensor) -> None:
            padded = rows.clone()
            padded[: bucket.elements] = x.view(-1)
            value.copy_(padded.view(size, -1)[index])

        return _BucketState(name, long, True, put)
    return _BucketState(name, value, False, value.copy_)


def _step_state(name: str, owner: object) -> _BucketState:
    now = torch.tensor(float(owner.step))  # type: ignore[attr-defined]
    return _BucketState(name, now, False, lambda x: setattr(owner, "step", int(x)))


def _assign_weights(bucket: FlatBucket, x: Tensor) -> None:
    for parameter, part in zip(bucket.parameters, bucket.split(x.view(-1)), strict=True):
        parameter.data.copy_(part.view_as(parameter))


def _by_rank(optimizer: FlatOptimizer, value: _BucketState) -> Iterator[tuple[str, Tensor]]:
    """One value for all ranks, or one per rank where they differ."""
    if not value.elementwise:
        yield value.name, value.value
        return
    rows = optimizer.levels.all.all_gather(value.value.contiguous())
    rows = rows.view(optimizer.levels.all.size, *value.value.shape)
    if all(torch.equal(rows[0], row) for row in rows[1:]):
        if value.name != WEIGHTS:  # those are the model's
            yield value.name, rows[0]
        return
    for rank, row in enumerate(rows):
        yield f"{value.name}@{rank}", row


def _split_by_parameter(bucket: FlatBucket, full: Tensor, elementwise: bool) -> list[Tensor]:
    """The slices of a state that belong to the parameters."""
    if elementwise:
        rows = [bucket.split(row) for row in full]
        columns = [[row[i] for row in rows] for i in range(len(bucket.sizes))]
        shapes = [p.shape for p in bucket.parameters]
        return [
            torch.stack([c.view(shape) for c in column])
            if len(column) > 1
            else column[0].view(shape)
            for column, shape in zip(columns, shapes, strict=True)
        ]
    if full.dim() == 1 and full.numel() == len(bucket.sizes):
        return list(full)
    return [full] * len(bucket.sizes)


def _join_parameters(bucket: FlatBucket, parts: list[Tensor], value: _BucketState) -> Tensor:
    """The inverse of `_split_by_parameter`."""
    if value.elementwise:
        rows = [part.reshape(len(value.value), -1) for part in parts]
        return torch.cat(rows, 1)
    if value.value.dim() == 1 and value.value.numel() == len(bucket.sizes):
        return torch.stack(parts)
    return parts[0]


def _saved_value(
    name: str, saved: Mapping[str, Tensor], rank: int, size: int, default: Tensor
) -> Tensor:
    """The saved state of a parameter for this rank; `default` where there is none."""
    if name in saved:
        return torch.as_tensor(saved[name], dtype=default.dtype).view_as(default)
    ranks = sorted(int(key.rpartition("@")[2]) for key in saved if key.rpartition("@")[0] == name)
    if not ranks:
        return default
    if ranks == list(range(size)):
        return saved[f"{name}@{rank}"].view_as(default)
    return torch.stack([saved[f"{name}@{r}"] for r in ranks]).mean(0).view_as(default)
