"""Tensors that pass between ranks which hold them in different boxes.

Every rank has some boxes of a whole tensor; a box that another rank has and wants overlaps travels.
Where several ranks have parts of a sum, the receiver adds what comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...comm.process_group import Group
from ...comm.transfer import Transfer
from ...state.local_tensor import TensorBox

Extent = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes of a box


def extents(boxes: Sequence[TensorBox]) -> tuple[Extent, ...]:
    """Where boxes lie in the whole tensor."""
    return tuple((box.offsets, tuple(box.values.shape)) for box in boxes)


def overlaps(
    boxes: Sequence[TensorBox], others: Sequence[Extent], mine_first: bool
) -> list[Tensor]:
    """The parts of these boxes that others have as well, as views, in the order of the pairs: by the
    sender's boxes, then by the receiver's. `mine_first`: these are the sender's."""
    views: list[Tensor] = []
    if mine_first:
        pairs = ((box, other) for box in boxes for other in others)
    else:
        pairs = ((box, other) for other in others for box in boxes)
    for box, (offsets, sizes) in pairs:
        view: Tensor | None = box.values
        for dim, (mine, start, size) in enumerate(zip(box.offsets, offsets, sizes, strict=True)):
            first = max(mine, start)
            last = min(mine + box.values.shape[dim], start + size)
            if first >= last or view is None:
                view = None
                break
            view = view.narrow(dim, first - mine, last - first)
        if view is not None and view.numel():
            views.append(view)
    return views


class BoxMessage(NamedTuple):
    """Parts of this rank's tensors that go to, or come from, rank `peer`."""

    peer: int
    views: tuple[Tensor, ...]


def send(group: Group, message: BoxMessage, what: str) -> Transfer | None:
    """Start sending the parts in one piece; None where there are none."""
    if not message.views:
        return None
    flat = torch.cat([view.reshape(-1) for view in message.views])
    return group.send(flat, group.ranks.index(message.peer), what)


def receive(group: Group, message: BoxMessage, what: str, *, add: bool) -> None:
    """Receive the parts and add them to what is there, or put them in its place."""
    if not message.views:
        return
    first, count = message.views[0], sum(view.numel() for view in message.views)
    flat = torch.empty(count, dtype=first.dtype, device=first.device)
    group.start_receive(flat, group.ranks.index(message.peer), what).wait()
    parts = flat.split([view.numel() for view in message.views])
    for view, part in zip(message.views, parts, strict=True):
        part = part.view(view.shape)
        view.add_(part) if add else view.copy_(part)
