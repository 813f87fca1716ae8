"""What ranks must have in common: the step, the batch, and the values of replicated parameters.

Checksums of it travel with the loss, as one number that is zero where all agree: among the ranks of a
group of n, the last counts its checksum -(n - 1) times, every other once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args
from zlib import crc32

import torch
from torch import Tensor

from ...ir.errors import MismatchError, UsageError
from ...ir.model.layout import REPLICATE
from ...ir.plan.strategy import ROLES
from ..comm.program_groups import MeshGroups
from ..state.local_parameter import LocalParameter
from ..state.parameters import ParameterStore
from .batch import Batch, batch_checksum

NonFinite = Literal["stop", "skip", "keep"]
CHECK_EVERY = 10  # steps; the step number is checked in all
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
RANGE = 1 << 32


class Replicas(NamedTuple):
    """Ranks that have the same shard of a tensor: where this one is among how many; `place` says which
    shard it is: the mesh, then every axis that shards with this rank's coordinate on it."""

    rank: int
    size: int
    place: tuple[int, ...]


class LossSum(NamedTuple):
    """The loss over all ranks, and whether any of them asks to stop."""

    loss: Tensor
    stop: bool


class Agreement:
    """Checks that ranks agree, parameters and batches every `every` steps (0: never).

    Optimizers that keep replicas of their own between exchanges are left out.
    """

    def __init__(self, store: ParameterStore, groups: MeshGroups, every: int = CHECK_EVERY) -> None:
        self.store, self.groups, self.every = store, groups, every
        self.everyone = groups.everyone
        self.facts: dict[str, int] = {}
        self.complete = False  # whether this step checks more than its number

    @property
    def apart(self) -> bool:
        """Whether ranks wait for a few others alone, and so agree on nothing."""
        compressed = self.store.compressed_optimizer
        return compressed is not None and compressed.algorithm.meets_some

    def checked_policy(self, nonfinite: NonFinite) -> NonFinite:
        """The policy on values that are not finite; raises UsageError where ranks cannot take it, and
        for one that there is not."""
        if nonfinite not in get_args(NonFinite):
            known = ", ".join(get_args(NonFinite))
            raise UsageError(f"nonfinite={nonfinite!r} is no policy; there are {known}")
        if self.apart and nonfinite != "keep":
            raise UsageError(
                f"nonfinite={nonfinite!r} asks all ranks in every step, and those of this plan wait for "
                f"a few others alone: leave it out"
            )
        return nonfinite

    def due(self, batches: int) -> bool:
        """Whether everything is checked at this step."""
        return self.everyone.size > 1 and bool(self.every) and batches % self.every == 0

    def note(self, steps: int, batches: int, batch: Batch) -> None:
        """Remember what all ranks must have in common in this step."""
        self.facts = {"the number of the step": steps, "the number of the batch": batches}
        self.complete = self.due(batches)
        if self.complete:
            self.facts["the batch"] = batch_checksum(batch)

    def sum_loss(self, loss: Tensor, stop: bool) -> LossSum:
        """Sum the terms of the loss over all ranks, and check with it that they agree. Raises
        MismatchError where they do not. Where ranks wait for a few others alone, the loss is that of
        this rank's samples, as if all were like them, and nothing is compared."""
        if self.everyone.size == 1:
            return LossSum(loss, stop)
        if self.apart:
            return LossSum(loss * self.everyone.size, stop)
        terms = loss.new_tensor([0.0, float(self.balance()), float(stop)])
        terms[0] = loss
        summed = self.everyone.all_reduce_(terms, "the loss")
        balance, stops = summed[1:].tolist()
        if balance:
            self.refuse()
        return LossSum(summed[0].clone(), bool(stops))

    def balance(self) -> int:
        """This rank's term of a sum over all ranks that is zero where they agree."""
        common = crc32(repr(sorted(self.facts.items())).encode())
        total = _weight(self.everyone.index, self.everyone.size) * common
        if self.complete:
            for replicas, checksum in self.parameter_checksums():
                total += _weight(replicas.rank, replicas.size) * checksum
        return total

    def parameter_checksums(self) -> Iterator[tuple[Replicas, int]]:
        """One checksum of all tensors that the same ranks replicate."""
        named = self.checksums()
        members: dict[Replicas, list[str]] = {}
        for name in named:
            members.setdefault(self.replicas(self.store.parameters[name]), []).append(name)
        for replicas, names in members.items():
            rows = sorted((name, named[name]) for name in names)
            yield replicas, crc32(repr(rows).encode())

    def checksums(self) -> dict[str, int]:
        """Checksums of the bits of this rank's replicated parameters, by name."""
        if self.store.compressed_optimizer is not None:
            return {}
        replicated = [
            p
            for p in self.store.trainable()
            if self.replicas(p).size > 1 and not p.sharding.partially_sharded
        ]
        if not replicated:
            return {}
        numbers = torch.stack([_bits(p.flat) for p in replicated]).tolist()
        return {p.name: int(n) % RANGE for p, n in zip(replicated, numbers, strict=True)}

    def replicas(self, parameter: LocalParameter) -> Replicas:
        """The ranks of this stage that have the same value in memory."""
        spec, mesh = parameter.spec, self.store.table.meshes[parameter.spec.mesh]
        layout = (*spec.layout, *(REPLICATE for _ in mesh.axes[len(spec.layout) :]))
        index, size, place = 0, 1, [self.groups.place, spec.mesh]
        coordinates = mesh.coordinate(self.groups.rank)
        for number, (axis, state, at) in enumerate(
            zip(mesh.axes, layout, coordinates, strict=True)
        ):
            zero3 = axis.name == "zero3" and parameter.sharding.degrees[0] > 1
            if ROLES[axis.name].stages or zero3 or state != REPLICATE:
                place += [number, at]
            else:
                index, size = index * axis.size + at, size * axis.size
        return Replicas(index, size, tuple(place))

    def refuse(self) -> None:
        """Raise MismatchError naming what ranks disagree on, and which; all ranks together."""
        values: dict[tuple[str, tuple[int, ...]], int]
        values = {(name, ()): number for name, number in self.facts.items()}
        for name, number in self.checksums().items():
            place = self.replicas(self.store.parameters[name]).place
            values[f"the values of {name}", place] = number
        rows = self.everyone.gather_objects(values, "what ranks disagree on")
        raise MismatchError(_difference(rows))


def _difference(rows: list[dict[Any, int]]) -> str:
    """The first fact on which ranks differ, in the order of the first rank that has it."""
    for key in dict.fromkeys(key for row in rows for key in row):
        values = {rank: row[key] for rank, row in enumerate(rows) if key in row}
        (usual, most), *others = Counter(values.values()).most_common()
        if not others:
            continue
        odd = [rank for rank, value in values.items() if value != usual]
        agreeing = [rank for rank, value in values.items() if value == usual]
        side = f"ranks {agreeing}" if most > 1 else f"rank {agreeing[0]}"
        shown = f"{values[odd[0]]} there, {usual} on {side}"
        subject = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {odd}"
        return (
            f"ranks have drifted apart: {subject} and the others differ in {key[0]} ({shown}); every "
            f"rank must run the same steps on the same global batches, or give its own part with "
            f"inputs='local'"
        )
    return "ranks have drifted apart: their checksums differed, and do no more"


def _weight(index: int, size: int) -> int:
    return 1 if index < size - 1 else 1 - size


def _bits(flat: Tensor) -> Tensor:
    """The sum of a tensor's bits as integers."""
    return flat.detach().view(BITS[flat.element_size()]).sum(dtype=torch.int64)
