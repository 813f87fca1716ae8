"""A program's state from the memory of the ranks that are left, without a file.

rank 0  ████░░░░        rank 2 leaves: rank 0 has what it had, all is there
rank 1  ░░░░████        rank 1 leaves: its half is nowhere, a checkpoint has it
rank 2  ████░░░░
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import prod
from typing import NamedTuple

import torch
from msgspec.structs import replace

from ...ir.lowering.redistribute import Box, Movement, disjoint, lacking, movements_of
from ..comm.process_group import Group
from ..state.borrowed.redistribution import Redistribution
from ..state.local_tensor import LocalTensor
from .generations import Manifest, StoredTensor, describe
from .program_state import MODEL, LocalTensors, ProgramState, load, local_state, manifest_of

Boxes = dict[str, tuple[Box, ...]]  # by tensor, what a rank has or wants of it


class LiveState(NamedTuple):
    """What this rank has; `stepped_whole`: tensors that one rank steps whole, `owned`: here."""

    tensors: LocalTensors
    manifest: Manifest
    stepped_whole: tuple[str, ...]
    owned: tuple[str, ...]


class Offer(NamedTuple):
    """What a rank says to all of its state."""

    manifest: Manifest
    boxes: Boxes
    stepped_whole: tuple[str, ...]
    owned: tuple[str, ...]


def live_state(program: ProgramState) -> LiveState | None:
    """This rank's part of the state after the last whole update; None where there is no such state: it
    was in the middle of one, or keeps errors of compressed messages. Nothing is sent."""
    counts = program.whole_update
    if counts is None or program.table.compression:
        return None
    state = local_state(program, frozenset(program.store.specs))
    stored = tuple(sorted(describe(state.tensors)))
    manifest = manifest_of(program, state.numbers, {})
    whole = {} if program.updates is None else program.updates.whole.tensors
    owned = tuple(name for name, tensor in whole.items() if tensor.leaf is not None)
    manifest = replace(manifest, tensors=stored, batches=counts.batches, samples=counts.samples)
    return LiveState(state.tensors, manifest, tuple(whole), owned)


def load_live(program: ProgramState, live: LiveState | None) -> bool:
    """Take over the newest state of which the ranks at hand have every element; all of them together.
    Gives whether there is one."""
    everyone = program.groups.everyone
    offer = None if live is None else Offer(live.manifest, _boxes(live.tensors), *live[2:])
    offers = everyone.gather_objects(offer, "what ranks have of the state")
    names = {f"{MODEL}/{n}" for n, spec in program.store.specs.items() if spec.kind != "constant"}
    senders = newest_whole(offers, names)
    if not senders:
        return False
    manifest = _together([offer for r, offer in enumerate(offers) if offer and r in senders])
    here = everyone.index in senders
    source = live.tensors if live is not None and here else {}
    there = [offer.boxes if offer and rank in senders else {} for rank, offer in enumerate(offers)]

    def read(wanted: LocalTensors) -> None:
        moves = _movements(everyone, manifest, there, wanted)
        moves.run(everyone, source, wanted)

    load(program, manifest, read)
    return True


def newest_whole(offers: Sequence[Offer | None], names: AbstractSet[str]) -> list[int]:
    """The ranks that made most steps, out of those which have every element of the tensors `names` and
    of the states together; empty where no such ranks are."""
    steps = sorted({offer.manifest.steps for offer in offers if offer}, reverse=True)
    for number in steps:
        ranks = [r for r, offer in enumerate(offers) if offer and offer.manifest.steps == number]
        if _is_whole(
            [offer for offer in offers if offer and offer.manifest.steps == number], names
        ):
            return ranks
    return []


def _is_whole(offers: Sequence[Offer], names: AbstractSet[str]) -> bool:
    stored = _stored(offers)
    owned = {name for offer in offers for name in offer.owned}
    if not names <= stored.keys() or any(not owned.issuperset(o.stepped_whole) for o in offers):
        return False
    for name, tensor in stored.items():
        there = [box for offer in offers for box in offer.boxes.get(name, ())]
        box: Box = tuple(((0, size),) for size in tensor.shape)
        if prod(tensor.shape) and lacking((box,), there):
            return False
    return True


def _stored(offers: Sequence[Offer]) -> dict[str, StoredTensor]:
    return {tensor.name: tensor for offer in offers for tensor in offer.manifest.tensors}


def _together(offers: Sequence[Offer]) -> Manifest:
    """The manifest of what ranks have together: some of a pipeline may have nothing to step."""
    first = max((offer.manifest for offer in offers), key=lambda m: len(m.groups))
    numbers = {name: n for offer in offers for name, n in offer.manifest.numbers.items()}
    return replace(first, numbers=numbers, tensors=tuple(_stored(offers).values()))


def _movements(
    group: Group, manifest: Manifest, there: Sequence[Boxes], wanted: Mapping[str, LocalTensor]
) -> Redistribution:
    """Who sends what, the largest tensors first."""
    needed = group.gather_objects(_boxes(wanted), "what ranks need of the state")
    dtypes = {t.name: getattr(torch, t.dtype) for t in manifest.tensors}
    sizes = {t.name: prod(t.shape) * dtypes[t.name].itemsize for t in manifest.tensors}
    sent, moves = [0] * group.size, list[Movement]()
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        has = [boxes.get(name, ()) for boxes in there]
        moves += movements_of(name, has, [boxes.get(name, ()) for boxes in needed], sent)
    return Redistribution(moves, dtypes, sizes)


def _boxes(tensors: Mapping[str, LocalTensor]) -> Boxes:
    return {name: disjoint(_chunk_boxes(tensor)) for name, tensor in tensors.items()}


def _chunk_boxes(tensor: LocalTensor) -> list[Box]:
    return [
        tuple(((at, at + n),) for at, n in zip(c.offsets, c.values.shape, strict=True))
        for c in tensor.chunks
        if c.values.numel()
    ]
